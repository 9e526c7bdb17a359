"""What goes wrong is reported in one sentence: what, expected, found, how to fix it; and nothing is left behind.

Every case runs the command line and compares the exact text with its line in ``errors.txt``; there ``{tmp}`` stands
for the case's folder, ``{digest}`` for a digest and ``{n}`` for a size in bytes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koala_bundle.files import write_json, write_sealed
from koala_cli.main import run_app

Prepare = Callable[[Path], object]


def edit_json(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text())
    write = write_sealed if path.parent.name == "bundle" else write_json  # a bundle's records hold their own digest
    write(path, data | changes)


def cut(path: Path, keep: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def nothing(_: Path) -> None:
    pass


# Each case: what is done to a good checkpoint and bundle in {tmp}, and the command; its sentence is in errors.txt.
EXPORT = ("export", "{tmp}/checkpoint", "{tmp}/new", "--height", "64", "--width", "64")
RUN = ("run", "{tmp}/bundle", "a cat", "--output", "{tmp}/cat.png")
CASES: dict[str, tuple[Prepare, tuple[str, ...]]] = {
    # --- checkpoints
    "missing config": (lambda t: (t / "checkpoint/unet/config.json").unlink(), EXPORT),
    "damaged config": (lambda t: cut(t / "checkpoint/unet/config.json"), EXPORT),
    "no weights": (lambda t: (t / "checkpoint/vae/diffusion_pytorch_model.safetensors").unlink(), EXPORT),
    "pickle only": (
        lambda t: (t / "checkpoint/unet/diffusion_pytorch_model.safetensors").rename(
            t / "checkpoint/unet/diffusion_pytorch_model.bin"
        ),
        EXPORT,
    ),
    "truncated safetensors": (
        lambda t: cut(t / "checkpoint/unet/diffusion_pytorch_model.safetensors"),
        EXPORT,
    ),
    "weights of another shape": (
        lambda t: edit_json(t / "checkpoint/text_encoder/config.json", intermediate_size=128),
        EXPORT,
    ),
    "missing tensors": (
        lambda t: edit_json(t / "checkpoint/text_encoder/config.json", num_hidden_layers=4),
        EXPORT,
    ),
    "size of no picture": (lambda t: edit_json(t / "checkpoint/unet/config.json", sample_size=[16]), EXPORT),
    "missing tokenizer": (lambda t: (t / "checkpoint/tokenizer_2/merges.txt").unlink(), EXPORT),
    "damaged tokenizer": (lambda t: cut(t / "checkpoint/tokenizer/vocab.json"), EXPORT),
    "unsupported scheduler": (
        lambda t: edit_json(t / "checkpoint/model_index.json", scheduler=["diffusers", "SASolverScheduler"]),
        EXPORT,
    ),
    "a scheduler's key": (
        lambda t: edit_json(t / "checkpoint/scheduler/scheduler_config.json", timestep_type="continuous"),
        EXPORT,
    ),
    "not SDXL": (
        lambda t: edit_json(t / "checkpoint/model_index.json", _class_name="StableDiffusionPipeline"),
        EXPORT,
    ),
    "U-Net without text_time": (
        lambda t: edit_json(t / "checkpoint/unet/config.json", addition_embed_type=None),
        EXPORT,
    ),
    "U-Net for other encoders": (
        lambda t: edit_json(t / "checkpoint/unet/config.json", cross_attention_dim=2048),
        EXPORT,
    ),
    "no such source": (nothing, ("export", "koala", "{tmp}/new")),
    "source is a file": (nothing, ("export", "{tmp}/checkpoint/model_index.json", "{tmp}/new")),
    "preset without a pipeline": (nothing, ("export", "sdxl-lightning", "{tmp}/new")),
    "random weights of a folder": (nothing, (*EXPORT, "--random-weights")),
    # --- export options
    "height": (nothing, ("export", "{tmp}/checkpoint", "{tmp}/new", "--height", "1020")),
    "no such pass": (nothing, (*EXPORT, "--without", "hoisting")),
    "tiny": (nothing, ("export", "{tmp}/checkpoint", "{tmp}/new", "--width", "8")),
    "batch": (nothing, (*EXPORT, "--batch", "0")),
    "precision": (nothing, (*EXPORT, "--precision", "int8")),
    "spacing": (nothing, (*EXPORT, "--timestep-spacing", "karras")),
    "steps at export": (nothing, (*EXPORT, "--steps", "0")),
    "guidance at export": (nothing, (*EXPORT, "--guidance-scale", "nan")),
    "no chunk of a prompt": (nothing, (*EXPORT, "--prompt-chunks", "0")),
    "clip skip of every layer": (nothing, (*EXPORT, "--clip-skip", "9")),
    "no other VAE": (nothing, (*EXPORT, "--vae", "{tmp}/none")),
    "VAE of another class": (
        lambda t: edit_json(t / "checkpoint/vae/config.json", _class_name="AutoencoderDC"),
        (*EXPORT, "--vae", "{tmp}/checkpoint/vae"),
    ),
    "preview decoder for other latents": (
        lambda t: edit_json(shutil.copytree(t / "checkpoint/vae", t / "vae") / "config.json", latent_channels=16),
        (*EXPORT, "--preview-decoder", "{tmp}/vae"),
    ),
    "no learned words": (nothing, (*EXPORT, "--embedding", "{tmp}/none.safetensors")),
    "learned words in a pickle": (
        lambda t: (t / "word.pt").write_bytes(b"") and None,
        (*EXPORT, "--embedding", "{tmp}/word.pt"),
    ),
    "no LoRA": (nothing, (*EXPORT, "--lora", "{tmp}/none.safetensors:0.5")),
    "rescaling of no guidance": (nothing, (*EXPORT, "--no-cfg", "--guidance-rescale")),
    "guidance without cfg": (nothing, (*EXPORT, "--no-cfg", "--guidance-scale", "5")),
    # --- places
    "bundle path is a file": (lambda t: (t / "new").write_text("mine") and None, EXPORT),
    "bundle path holds something else": (
        lambda t: ((t / "new").mkdir(), (t / "new" / "thesis.txt").write_text("mine"))[0],
        EXPORT,
    ),
    "parent is a file": (
        nothing,
        ("export", "{tmp}/checkpoint", "{tmp}/checkpoint/model_index.json/new", "--height", "64", "--width", "64"),
    ),
    # --- bundles
    "no bundle": (nothing, ("run", "{tmp}/nowhere", "a cat")),
    "bundle is a file": (nothing, ("run", "{tmp}/checkpoint/model_index.json", "a cat")),
    "no engines": (lambda t: shutil.rmtree(t / "bundle/engines"), RUN),
    "newer schema": (lambda t: edit_json(t / "bundle/manifest.json", schema_version=9), RUN),
    "damaged manifest": (lambda t: (t / "bundle/manifest.json").write_text('{"components":'), RUN),
    "manifest without gate": (lambda t: edit_json(t / "bundle/manifest.json", gate=3), RUN),
    "wrong digest of a plan": (lambda t: flip_byte(t / "bundle/engines/cpu/denoiser.onnx.data"), RUN),
    "truncated plan": (lambda t: cut(t / "bundle/engines/cpu/denoiser.onnx.data"), RUN),
    "missing plan": (lambda t: (t / "bundle/engines/cpu/denoiser.onnx").unlink(), RUN),
    "wrong digest of the ONNX": (
        lambda t: (flip_byte(t / "bundle/onnx/denoiser.onnx.data"), shutil.rmtree(t / "bundle/engines"))[0],
        ("engines", "{tmp}/bundle", "--target", "cpu"),
    ),
    "wrong digest of a tokenizer": (lambda t: flip_byte(t / "bundle/tokenizer/tokenizer.json"), RUN),
    "other compiler version": (
        lambda t: edit_key(t / "bundle/engines/cpu/engine.json", compiler_version="1.2.3"),
        RUN,
    ),
    "engines of other ONNX": (
        lambda t: edit_plan(t / "bundle/engines/cpu/engine.json", "denoiser", onnx={}),
        RUN,
    ),
    "path out of the bundle": (lambda t: point_outside(t / "bundle/engines/cpu/engine.json"), RUN),
    "plan without a digest": (lambda t: edit_record(t / "bundle/engines/cpu/engine.json", files={}), RUN),
    "ONNX without a digest": (
        lambda t: edit_json(t / "bundle/manifest.json", files={}),
        ("engines", "{tmp}/bundle", "--target", "cpu"),
    ),
    "engines for a GPU, none here": (lambda t: pretend_gpu_engines(t), (*RUN, "--target", "tensorrt")),
    # --- building
    "unknown target": (nothing, ("engines", "{tmp}/bundle", "--target", "metal")),
    "no GPU for tensorrt": (nothing, ("engines", "{tmp}/bundle", "--target", "tensorrt")),
    "Hopper for rtx": (
        nothing,
        ("engines", "{tmp}/bundle", "--target", "rtx", "--compute-capability", "9.0"),
    ),
    "optimization level": (
        nothing,
        ("engines", "{tmp}/bundle", "--target", "rtx", "--optimization-level", "9"),
    ),
    # --- drawing
    "steps 0": (nothing, (*RUN, "--steps", "0")),
    "steps 1001": (nothing, (*RUN, "--steps", "1001")),
    "NaN guidance": (nothing, (*RUN, "--guidance-scale", "nan")),
    "40,000 characters": (nothing, ("run", "{tmp}/bundle", "koala " * 6667, "--output", "{tmp}/cat.png")),
    "lone surrogate": (nothing, ("run", "{tmp}/bundle", "a \ud800 cat", "--output", "{tmp}/cat.png")),
    "output folder": (nothing, ("run", "{tmp}/bundle", "a cat", "--output", "{tmp}/gallery/cat.png")),
    "output ending": (nothing, ("run", "{tmp}/bundle", "a cat", "--output", "{tmp}/cat.doc")),
    "unknown run target": (nothing, (*RUN, "--target", "metal")),
    "device of a processor": (nothing, (*RUN, "--device", "1")),
    "device that is not there": (nothing, ("engines", "{tmp}/bundle", "--device", "GPU-8f3c")),
}


def edit_record(path: Path, **changes: object) -> None:
    write_sealed(path, json.loads(path.read_text()) | changes)


def edit_key(path: Path, **changes: object) -> None:
    record = json.loads(path.read_text())
    record["key"] |= changes
    write_sealed(path, record)


def edit_plan(path: Path, name: str, **changes: object) -> None:
    record = json.loads(path.read_text())
    record["plans"][name] |= changes
    write_sealed(path, record)


def point_outside(path: Path) -> None:
    record = json.loads(path.read_text())
    record["plans"]["denoiser"]["files"] = ["../../../secret"]
    record["files"]["../../../secret"] = {"sha256": "00", "size": 1}
    write_sealed(path, record)


def pretend_gpu_engines(tmp: Path) -> None:
    folder = shutil.copytree(tmp / "bundle/engines/cpu", tmp / "bundle/engines/tensorrt/nvidia-h200-9.0")
    gpu = {"name": "NVIDIA H200", "compute_capability": "9.0"}
    edit_key(folder / "engine.json", gpu=gpu)


@pytest.fixture
def folders(tmp_path: Path, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]) -> Iterator[Path]:
    """A folder with a good checkpoint and a good bundle of it, to be spoilt."""
    shutil.copytree(checkpoint("koala-700m-like"), tmp_path / "checkpoint")
    shutil.copytree(bundle("koala-700m-like"), tmp_path / "bundle")
    yield tmp_path
    shutil.rmtree(tmp_path)  # a hundred megabytes each


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


SENTENCES = dict(
    line.split(": ", 1) for line in Path(__file__).with_name("errors.txt").read_text().splitlines() if line
)


def normalised(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "{tmp}")
    text = re.sub(r"[0-9a-f]{16}\.\.\.", "{digest}...", text)
    return re.sub(r"[\d,]+ bytes", "{n} bytes", text)


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_nothing_left_behind(case: str, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, command = CASES[case]
    prepare(folders)
    before = listing(folders)
    code = run_app([word.replace("{tmp}", str(folders)) for word in command])
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error ")]
    assert [normalised(line.removeprefix("error "), folders) for line in shown] == [SENTENCES[case]]
    assert code == 2
    assert listing(folders) == before


def test_every_sentence_has_its_case() -> None:
    assert list(SENTENCES) == list(CASES)
