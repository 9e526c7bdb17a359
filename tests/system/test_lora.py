"""A bundle with LoRAs draws what diffusers draws after loading and fusing them, and verify knows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from koala_bench.backends.base import Workload
from koala_bench.backends.diffusers import Reference
from koala_bench.runner import BenchOptions, run
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import read_manifest
from koala_cli.main import run_app
from koala_runtime import Pipeline
from koala_verify.verify import verify
from tests.support.bundles import lora_files
from tests.support.diffusers import open_reference

# numpy tells diffusers' scheduler of a coming change; that is diffusers' to follow.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = "koala-700m-like"
BOUNDS = {"fp32": 1 / 255, "fp16": 2 / 255}
MOVED = 20 / 255
USUAL: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.5, "output_type": "np"}


def given() -> tuple[str, ...]:
    """One for U-Net and text encoders, and a weaker one on top, for one text encoder."""
    files = lora_files(SHAPE)
    return f"{files['kohya']}:0.7", f"{files['text']}:-0.4"


def with_loras(bundle: Callable[..., Path], precision: str) -> Path:
    return bundle(SHAPE, precision=precision, loras=given(), gate=precision == "fp32")


@pytest.fixture(scope="module")
def reference(checkpoint: Callable[[str], Path]) -> Any:
    pipeline = open_reference(checkpoint(SHAPE))
    for text in given():
        file, _, scale = text.rpartition(":")
        pipeline.load_lora_weights(file)
        pipeline.fuse_lora(lora_scale=float(scale))
        pipeline.unload_lora_weights()
    return pipeline


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.full)])
def test_pictures_are_those_of_diffusers(reference: Any, bundle: Callable[..., Path], precision: str) -> None:
    with Pipeline(with_loras(bundle, precision)) as pipeline, Pipeline(bundle(SHAPE)) as plain:
        for seed, prompt in enumerate(("a photo of a cat", "")):
            generator = torch.Generator().manual_seed(seed)
            wanted = reference(prompt, generator=generator, height=64, width=96, **USUAL).images
            assert np.abs(wanted - pipeline(prompt, seed=seed, **USUAL).images).max() <= BOUNDS[precision]
            assert np.abs(wanted - plain(prompt, seed=seed, **USUAL).images).max() > MOVED


def test_verify_knows_them(bundle: Callable[..., Path], checkpoint: Callable[[str], Path]) -> None:
    path, source = with_loras(bundle, "fp32"), str(checkpoint(SHAPE))
    entries = read_manifest(path).origin.loras
    assert [str(entry) for entry in entries] == ["kohya.safetensors:0.7", "text.safetensors:-0.4"]
    assert verify(path, source, loras=given()).failures == []
    listed = rf"kohya\.safetensors:0\.7 \(SHA-256 {entries[0].sha256[:8]}\.\.\.\), text\.safetensors:-0\.4 \(SHA-256 "
    for wrong in ((), given()[:1], given()[::-1], (given()[0], given()[1].replace("-0.4", "0.4"))):
        with pytest.raises(ArgumentError, match=f"loras: expected those that the bundle was made with: {listed}"):
            verify(path, source, loras=wrong)
    with pytest.raises(ArgumentError, match=r"loras: expected those that the bundle was made with: none, found kohya"):
        verify(bundle(SHAPE), source, loras=given())


def test_bench_knows_them(
    reference: Any, bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path, source = with_loras(bundle, "fp32"), str(checkpoint(SHAPE))
    with pytest.raises(
        ArgumentError, match=r"loras: expected those that the bundle was made with: kohya.*found none; "
    ):
        run(path, source, BenchOptions())
    workload = Workload(str(path), source, "a cat", 0, 4, 3.5, str(tmp_path), given())
    generator = torch.Generator().manual_seed(0)
    wanted = reference("a cat", generator=generator, height=64, width=96, **USUAL).images[0]
    assert np.abs(Reference(workload).draw()[0] / 255 - wanted).max() <= BOUNDS["fp32"]


def test_inspect_shows_them(bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["inspect", str(with_loras(bundle, "fp32"))]) == 0
    assert "kohya.safetensors:0.7, text.safetensors:-0.4" in capsys.readouterr().out


@pytest.mark.full
def test_verify_would_notice(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is diffusers' own sum: pictures differ if it adds nothing."""
    monkeypatch.setattr("koala_verify.reference.add_lora", lambda pipe, lora: None)
    failures = verify(with_loras(bundle, "fp32"), str(checkpoint(SHAPE)), loras=given()).failures
    assert len(failures) == 3
