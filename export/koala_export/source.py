"""From what the user names (a folder, a preset, a hub name) to a Checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from koala_bundle.errors import ArgumentError, CheckpointError
from koala_export.checkpoint import Checkpoint, FolderCheckpoint
from koala_export.configs import CONFIG_FILES, MODELS
from koala_export.lora import read_loras
from koala_export.presets import PRESETS
from koala_export.random_weights import RandomCheckpoint

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_DOWNLOADED = (
    *CONFIG_FILES.values(),
    "tokenizer/*",
    "tokenizer_2/*",
    *(f"{model}/{stem}" for model in MODELS for stem in ("model*", "diffusion_pytorch_model*")),
)
_NOT_DOWNLOADED = ("*.bin", "*.msgpack", "*.onnx*", "*openvino*", "*.xml", "*.ckpt", "*flax*", "*non_ema*")


def open_source(
    source: str, *, random_weights: bool, precision: str, embeddings: Sequence[Path] = (), loras: Sequence[str] = ()
) -> Checkpoint:
    """Return the checkpoint, with the learned words in ``embeddings`` and ``loras``, each ``FILE[:SCALE]``.

    Raises CheckpointError or ArgumentError if ``source`` names none.
    """
    preset = PRESETS.get(source)
    if random_weights:
        for name, given in (("embeddings", embeddings), ("loras", loras)):
            if given:
                raise ArgumentError(
                    name,
                    expected="none with random weights",
                    found=str(given[0]),
                    fix="leave it out, or export the checkpoint that it was trained for",
                )
        if preset is None:
            raise ArgumentError(
                "random_weights",
                expected=f"a preset ({', '.join(PRESETS)})",
                found=source,
                fix="name a preset, or leave it out to export a checkpoint with its own weights",
            )
        return RandomCheckpoint(preset)
    folder = Path(source)
    if folder.is_dir():
        return FolderCheckpoint(folder, precision, None, embeddings, read_loras(loras))
    if folder.exists():
        raise CheckpointError(
            source, expected="a checkpoint folder", found="a file", fix="pass a folder saved by diffusers"
        )
    if preset is not None and preset.hub_id is None:
        raise CheckpointError(
            source,
            expected="a whole pipeline on the hub",
            found="a preset that is published as a U-Net alone",
            fix="save a folder with it and pass the folder, or export the preset with random weights for a dry run",
        )
    hub_name = preset.hub_id if preset is not None else source
    if hub_name is not None and is_hub_name(hub_name):
        known = next((known for known in PRESETS.values() if known.hub_id == hub_name), None)
        return FolderCheckpoint(download(hub_name, precision), precision, known, embeddings, read_loras(loras))
    raise CheckpointError(
        source,
        expected=f"a checkpoint folder, a hub name like etri-vilab/koala-lightning-700m, or a preset "
        f"({', '.join(PRESETS)})",
        found="none of these",
        fix="check the spelling and the current folder",
    )


def is_hub_name(source: str) -> bool:
    """Return whether ``source`` can name a repository: owner/name."""
    return _HUB_NAME.fullmatch(source) is not None


def download(hub_name: str, precision: str, files: Sequence[str] = _DOWNLOADED) -> Path:
    """Return the local copy of a repository, downloading what is missing of the ``files`` (patterns) that are read."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        names, offline = huggingface_hub.list_repo_files(hub_name), False
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"hub repository {hub_name}",
            expected="a checkpoint",
            found="no such repository, or no access to it",
            fix="check the name; for a gated one log in with `hf auth login`",
        ) from None
    except Exception:  # whatever the network raises: an earlier download may still serve
        names, offline = [], True
    # fp16 weights are half the download; the VAE of the KOALA repositories comes in one plain file only.
    halved = [name.replace(".fp16.", ".") for name in names if name.endswith(".fp16.safetensors")]
    try:
        folder = huggingface_hub.snapshot_download(
            hub_name,
            allow_patterns=[*files],
            ignore_patterns=[*_NOT_DOWNLOADED, *(halved if precision == "fp16" else [])],
            local_files_only=offline,
        )
    except Exception as error:  # network and hub errors share no base class
        raise CheckpointError(
            f"hub repository {hub_name}",
            expected="a download",
            found=f"no connection and no earlier download ({type(error).__name__})",
            fix="check the network, pass a local folder, or export a preset with random weights for a dry run",
        ) from error
    return Path(folder)
