"""Checkpoints and bundles for tests, each made once and kept between runs in ``build/test-cache``.

An entry is found by a digest of everything that its bytes depend on: the sources of the packages that make it, the
files of the checkpoint, the options, Python and every installed package. Whatever changes one of them makes another
entry; a test never sees what other code wrote. Entries are shared by all workers of a run. Tests read them, may build
further targets in them, and change copies only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import torch
from filelock import FileLock

import koala_bundle
import koala_engines
import koala_export
import koala_machine
import koala_tiny
from koala_bundle.engine_record import engine_folder, read_engine_record
from koala_bundle.errors import KoalaError
from koala_bundle.files import check_files, file_entry, relative
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU
from koala_engines.build import build_engines
from koala_export.checkpoint import FolderCheckpoint
from koala_export.exporter import export_bundle
from koala_export.lora_names import MODELS_WITH_LORA
from koala_export.options import ExportOptions
from tests.support import checkpoints, loras
from tests.support.koala_tiny import CHECKPOINT

CACHE = Path(__file__).resolve().parents[2] / "build" / "test-cache"
UNUSED = 2 * 3600  # seconds after which an entry may be removed; longer than any run
TINY = "koala-tiny"
DEFAULTS = {"height": 64, "width": 96, "precision": "fp32", "cfg": True, "num_inference_steps": 4}
TINY_DEFAULTS = {"num_inference_steps": 10, "guidance_scale": 2.0}  # as `make image` exports it


def file_digests(*paths: Path) -> dict[str, str]:
    """Return the SHA-256 of each file, or of every file below each folder, by name; bytecode is left out."""
    found = {}
    for path in paths:
        files = [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())
        for file in sorted(file for file in files if "__pycache__" not in file.parts):
            found[f"{path.name}/{relative(path, file)}"] = file_entry(file).sha256
    return found


def entry_name(name: str, *parts: object) -> str:
    """Return the name of the cache entry for ``name`` that depends on ``parts``."""
    text = json.dumps([environment(), *parts], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


@cache
def environment() -> tuple[str, ...]:
    """Return the version of Python and of every installed package."""
    return sys.version, *sorted({f"{each.name}=={each.version}" for each in distributions()})


@cache
def sources() -> dict[str, str]:
    """Return the digests of the packages that decide what is in a bundle."""
    packages = (koala_bundle, koala_machine, koala_export, koala_engines)
    return file_digests(*(Path(package.__file__).parent for package in packages))


@cache
def checkpoint(shape: str) -> Path:
    """Return the checkpoint of ``shape``: one of SHAPES, saved on first use, or koala-tiny."""
    if shape == TINY:
        return CHECKPOINT
    makers = file_digests(Path(checkpoints.__file__), Path(koala_tiny.__file__).parent)
    path = open_entry(entry_name(shape, makers, sources()))
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            checkpoints.save_checkpoint(checkpoints.SHAPES[shape], unfinished)
            unfinished.rename(path)
    return path


@cache
def learned_words(shape: str) -> tuple[Path, ...]:
    """Return files of learned words for ``shape``, to be exported as its ``embeddings``."""
    path = open_entry(entry_name(f"{shape}-words", file_digests(Path(checkpoints.__file__))))
    with FileLock(f"{path}.lock"):
        return checkpoints.save_learned_words(path, checkpoints.SHAPES[shape])


@cache
def lora_files(shape: str) -> dict[str, Path]:
    """Return a LoRA of every kind for ``shape``, by kind (``tests.support.loras``)."""
    source = checkpoint(shape)
    path = open_entry(entry_name(f"{shape}-loras", file_digests(Path(loras.__file__), source)))
    with FileLock(f"{path}.lock"):
        if not path.exists():
            opened = FolderCheckpoint(source, "fp32")
            models = {model: opened.load(model, torch.float32) for model in MODELS_WITH_LORA}
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            loras.save_kinds(models, unfinished)
            unfinished.rename(path)
    return {file.stem: file for file in sorted(path.iterdir())}


@cache
def tiny_vae(seed: int = 0) -> Path:
    """Return the folder of an AutoencoderTiny, to be exported as its ``vae`` or ``preview_decoder``."""
    path = open_entry(entry_name(f"tiny-vae-{seed}", file_digests(Path(checkpoints.__file__))))
    with FileLock(f"{path}.lock"):
        return checkpoints.save_tiny_vae(path, seed)


def bundle(shape: str, **options: object) -> Path:
    """Return a bundle of ``shape`` with cpu engines; ``options`` are those of ExportOptions, with DEFAULTS.

    Ask for it before you patch anything: it is made in this process.
    """
    defaults = TINY_DEFAULTS if shape == TINY else DEFAULTS
    return _bundle(shape, tuple(sorted((defaults | options).items())))


@cache
def _bundle(shape: str, options: Iterable[tuple[str, object]]) -> Path:
    source, chosen = checkpoint(shape), ExportOptions(**dict(options))  # type: ignore[arg-type]
    others = file_digests(*(Path(each) for each in (chosen.vae, chosen.preview_decoder) if each))
    path = open_entry(entry_name(f"{shape}-bundle", sources(), file_digests(source), others, repr(chosen)))
    with FileLock(f"{path}.lock"):
        if not is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
        export_bundle(str(source), path, chosen)
        build_engines(path, CPU)
    return path


def is_whole(path: Path) -> bool:
    """Return whether the bundle has the bytes of its records: a test may have changed an entry by mistake."""
    try:
        check_files(path, read_manifest(path).files, "")
        check_files(engine_folder(path, CPU), read_engine_record(path, CPU).files, "")
    except KoalaError:
        return False
    return True


def open_entry(name: str, root: Path = CACHE) -> Path:
    """Return the path of an entry, marked as used now; removes entries that nobody has used for long."""
    root.mkdir(parents=True, exist_ok=True)
    mark = root / f"{name}.used"
    mark.touch()
    for other in root.glob("*.used"):
        if time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other.with_suffix(""), ignore_errors=True)
            for file in (other, other.with_suffix(".lock")):
                file.unlink(missing_ok=True)
    return root / name
