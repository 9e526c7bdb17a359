"""Refusals that need a disk, a GPU or a call from Python to be seen: each one sentence, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koala_bundle.errors import ArgumentError
from koala_bundle.files import write_sealed
from koala_cli.main import run_app
from koala_runtime import Pipeline

MB = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that mounts a file system of so many bytes in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root on Linux")

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let tests mount a file system")
        return place

    yield mount
    # Lazily: a compiler that failed may still map a file there, and a mount that stays cannot be cleaned up.
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
    assert not place.is_mount()


def sentence(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str]:
    """Run ``koala`` and return its exit code and the sentence shown."""
    code = run_app([*command])
    lines = capsys.readouterr().err.splitlines()
    return code, next(line.removeprefix("error ") for line in lines if line.startswith("error "))


EXPORT = ("--height", "64", "--width", "64", "--precision", "fp32")


def test_export_to_a_full_disk(
    disk: Callable[[int], Path], checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = disk(21 * MB)
    code, text = sentence(capsys, "export", str(checkpoint("koala-700m-like")), str(place / "bundle"), *EXPORT)
    free = re.escape("; free some space or choose another disk; nothing half-written is left.")
    found = re.escape(f"{place}/bundle: expected a place that can be written, found ")
    assert re.fullmatch(found + r"\d+ MB needed, \d+ MB free" + free, text)
    assert code == 2
    assert not [*place.iterdir()]


@pytest.mark.parametrize("target", ["cpu", "rtx"])
def test_engines_on_a_full_disk(
    target: str, disk: Callable[[int], Path], bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    if target == "rtx":
        pytest.importorskip("tensorrt_rtx")
    place = disk(60 * MB)
    shutil.copytree(bundle("koala-700m-like"), place / "bundle", ignore=shutil.ignore_patterns("engines"))
    before = {*place.rglob("*")}
    code, text = sentence(capsys, "engines", str(place / "bundle"), "--target", target)
    assert text.startswith(f"{place}/bundle/engines/{target}: expected a place that can be written, found ")
    assert text.endswith("; free some space or choose another disk; nothing half-written is left.")
    assert code == 2
    assert {*place.rglob("*")} == before


def test_a_read_only_disk(
    disk: Callable[[int], Path],
    checkpoint: Callable[[str], Path],
    bundle: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = disk(200 * MB)
    shutil.copytree(bundle("koala-700m-like"), place / "bundle")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    fix = "found read-only file system; choose a path on a disk that is not mounted read-only."
    code, text = sentence(capsys, "export", str(checkpoint("koala-700m-like")), str(place / "new"), *EXPORT)
    assert (code, text) == (2, f"{place}/new: expected a place that can be written, {fix}")
    code, text = sentence(capsys, "engines", str(place / "bundle"), "--target", "cpu")
    assert (code, text) == (2, f"{place}/bundle/engines/cpu: expected a place that can be written, {fix}")
    # Reading needs no writing: a bundle in a read-only image still draws.
    assert run_app(["run", str(place / "bundle"), "a cat", "--output", str(place.parent / "cat.png")]) == 0


def test_engines_of_another_gpu(tmp_path: Path, bundle: Callable[..., Path]) -> None:
    """With a driver that shows an RTX 4090, plans for an H200 are refused, and so are rtx plans for other chips."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and the Linux loader for a driver that shows a GPU")
    source = tmp_path / "cuda.c"
    source.write_text(
        "#include <string.h>\n"
        "int cuInit(unsigned f) { return 0; }\n"
        "int cuDriverGetVersion(int *v) { *v = 13000; return 0; }\n"
        "int cuDeviceGetCount(int *n) { *n = 1; return 0; }\n"
        "int cuDeviceGet(int *d, int i) { *d = 0; return 0; }\n"
        'int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA GeForce RTX 4090", n); return 0; }\n'
        "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : 9; return 0; }\n"
        "int cuDeviceTotalMem_v2(unsigned long *n, int d) { *n = 24ul << 30; return 0; }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    copy = tmp_path / "bundle"
    shutil.copytree(bundle("koala-700m-like"), copy)
    h200 = {"name": "NVIDIA H200", "compute_capability": "9.0"}
    for target, changes in (
        ("tensorrt", {"gpu": h200}),
        ("rtx", {"options": {"compute_capabilities": "12.0"}}),
    ):
        folder = copy / "engines" / target
        shutil.copytree(copy / "engines" / "cpu", folder / "nvidia-h200-9.0" if target == "tensorrt" else folder)
        (path,) = folder.rglob("engine.json")
        record = json.loads(path.read_text())
        record["key"] |= changes
        write_sealed(path, record)
        command = [sys.executable, "-m", "koala_cli.main", "run", str(copy), "a cat", "--target", target]
        environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = "NVIDIA H200 (compute capability 9.0)" if target == "tensorrt" else "12.0"
        assert done.stderr.strip() == (
            f"error engines for {target} in {copy}: expected plans for NVIDIA GeForce RTX 4090 "
            f"(compute capability 8.9), the GPU of this machine, found plans for {found}; "
            f"build them on this machine with `koala engines {copy} --target {target}`."
        )
        assert done.returncode == 2
    shutil.rmtree(copy)


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": []}, "prompt: expected at least one text, found an empty list; pass a prompt."),
    "prompt of bytes": (
        {"prompt": [b"cat"]},
        "prompt: expected a string, found bytes; pass text, or a list of texts.",
    ),
    "no text at all": ({"prompt": None}, "prompt: expected a text, or prompt_embeds, found neither; pass a prompt."),
    "half a size": (
        {"original_size": (512,)},
        "original_size: expected (height, width) in pixels, found (512,); pass two numbers.",
    ),
    "guidance beyond float32": (
        {"guidance_scale": 10**40},
        f"guidance_scale: expected a finite number, found {10**40}; pass 3.5 or so, or 1 for none.",
    ),
    "latents of words": (
        {"latents": "noise"},
        "latents: expected an array of float32, found str; pass a numpy array.",
    ),
    "latents from a callback": (
        {"callback_on_step_end": lambda *_: {"latents": np.zeros(3)}},
        "latents: expected shape [1, 4, 8, 12], found [3]; pass one set of latents per picture, at the bundle's size.",
    ),
    "negative prompts": (
        {"prompt": ["a", "b"], "negative_prompt": ["x", "y", "z"]},
        "negative_prompt: expected 2, one per prompt, found 3; pass one text for all prompts or as many texts as "
        "prompts.",
    ),
    "seed": ({"seed": 1.5}, "seed: expected a whole number, found 1.5; pass an int, or None."),
    "output type": (
        {"output_type": "jpeg"},
        "output_type: expected pil or np or latent or device, found 'jpeg'; pass one of these.",
    ),
    "steps": (
        {"num_inference_steps": 2.5},
        "num_inference_steps: expected a whole number from 1 to 1000, found 2.5; pass 10 or so for KOALA-Lightning, "
        "25 for KOALA.",
    ),
    "latents of another size": (
        {"latents": np.zeros((1, 4, 8, 8), np.float32)},
        "latents: expected shape [1, 4, 8, 12], found [1, 4, 8, 8]; pass one set of latents per picture, at the "
        "bundle's size.",
    ),
    "latents not finite": (
        {"latents": np.full((1, 4, 8, 12), np.nan, np.float32)},
        "latents: expected finite values, found NaN or infinity; check the latents.",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_cannot_be_drawn(case: str, bundle: Callable[..., Path]) -> None:
    arguments, text = CALLS[case]
    with Pipeline(bundle("koala-700m-like")) as pipeline:
        with pytest.raises(ArgumentError) as caught:
            pipeline(**({"prompt": "a cat"} | arguments))
        assert str(caught.value) == text
        assert len(pipeline("a cat", num_inference_steps=1).images) == 1, "the pipeline still works afterwards"


def test_a_callback_cannot_call_its_pipeline(bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle("koala-700m-like")) as pipeline:

        def again(pipe: Pipeline, *_: Any) -> dict[str, Any]:
            pipe("a cat")
            return {}

        with pytest.raises(RuntimeError, match="its own callback_on_step_end"):
            pipeline("a cat", callback_on_step_end=again)
        assert len(pipeline("a cat", num_inference_steps=1).images) == 1


def test_guidance_in_a_bundle_without_it(bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle("koala-700m-like", cfg=False)) as pipeline, pytest.raises(ArgumentError) as caught:
        pipeline("a cat", guidance_scale=3.5)
    assert str(caught.value) == (
        "guidance_scale: expected 1 or less in a bundle that was exported without guidance, found 3.5; "
        "pass 1, or export the bundle again with guidance compiled in."
    )
