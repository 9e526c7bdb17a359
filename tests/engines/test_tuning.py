"""What is asked of TensorRT: timing, tactics, the cache of timings; and builds that are compared by measuring them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koala_bundle.engine_record import read_engine_record
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import CPU, RTX, TENSORRT, Target
from koala_engines.build import build_engines
from koala_engines.options import BuildOptions
from koala_engines.rtx import RtxCompiler
from koala_engines.tensorrt import TIMING_ITERATIONS, TensorRTCompiler
from tests.support.fleet import Compiled, be, make_bundle
from tests.support.recording import ADA, NO_GPU, Recording, components, nothing


class Config:
    """A builder configuration that accepts no timing cache but its own."""

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses
        self.used: bytes | None = None
        self.avg_timing_iterations = 1

    def create_timing_cache(self, blob: bytes) -> Any:
        return None if blob and self.refuses == "create" else SimpleNamespace(blob=blob, serialize=lambda: b"new")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.blob and self.refuses == "set":
            return False
        self.used = cache.blob
        return True

    def get_timing_cache(self) -> Any:
        return self.create_timing_cache(b"")


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TensorRTCompiler, Callable[[str], Config]]]:
    """TensorRT's compiler, and a function that configures a build with a configuration of the given stubbornness."""
    be(ADA, monkeypatch)
    compiler = TensorRTCompiler(BuildOptions())

    def run(refuses: str) -> Config:
        config = Config(refuses)

        def build(name: str, onnx_path: Path, folder: Path, progress: Any, configure: Any, keep: Any) -> Path:
            configure(config)
            keep(config)
            return folder / f"{name}.plan"

        monkeypatch.setattr(compiler, "_build", build)
        return config

    yield compiler, run


@pytest.mark.parametrize("refuses", ["create", "set"])
def test_a_stale_timing_cache_is_left(
    tensorrt: tuple[TensorRTCompiler, Callable[[str], Config]],
    tmp_path: Path,
    refuses: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F12. What the library does not accept is not offered again: the search starts with an empty cache."""
    compiler, run = tensorrt
    caplog.set_level(logging.INFO)
    saved = tmp_path / f"timing-nvidia-geforce-rtx-4090-8.9-{compiler.version}.cache"
    (tmp_path / "timing-nvidia-geforce-rtx-4090-8.9-11.0.cache").write_bytes(b"of another version")
    config = run("nothing")
    compiler.build("a", tmp_path / "a.onnx", tmp_path, nothing)
    assert config.used == b""
    assert saved.read_bytes() == b"new"
    config = run("nothing")
    compiler.build("b", tmp_path / "b.onnx", tmp_path, nothing)
    assert config.used == b"new"
    config = run(refuses)
    compiler.build("c", tmp_path / "c.onnx", tmp_path, nothing)
    assert config.used == b""
    assert "starting with an empty one" in caplog.text


def test_the_last_complaint_is_the_reason(tensorrt: tuple[TensorRTCompiler, Any]) -> None:
    compiler, _ = tensorrt
    error = compiler._refused("denoiser", "build", ["the timing cache is of another version", "out of memory."])
    assert error.found == "out of memory"


def test_tactics_are_timed_more_than_once(tensorrt: tuple[TensorRTCompiler, Any], tmp_path: Path) -> None:
    """S4. And it is in the key."""
    compiler, run = tensorrt
    config = run("nothing")
    compiler.build("a", tmp_path / "a.onnx", tmp_path, nothing)
    assert config.avg_timing_iterations == TIMING_ITERATIONS == 8
    assert compiler.key().options["avg_timing_iterations"] == "8"


def test_tuning_keeps_the_fastest_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)
    be(ADA, monkeypatch)
    times = {"denoiser": iter([0.03, 0.01, 0.02]), "vae_decoder": iter([0.1, 0.3, 0.2])}
    fastest: dict[str, tuple[float, str]] = {}

    def measure(target: Target, entry: ComponentEntry, plan: Path) -> float:
        seconds = next(times[entry.name])
        fastest[entry.name] = min(fastest.get(entry.name, (9.0, "")), (seconds, plan.read_text()))
        return seconds

    assert build_engines(bundle, TENSORRT, BuildOptions(tune=3), measure=measure)
    built = [line.split()[-1] for line in compiled.since()]
    assert {name: built.count(name) for name in built} == {
        name: 3 if name in times else 1 for name in components(bundle)
    }
    (path,) = bundle.rglob("engine.json")
    record = read_engine_record(bundle, TENSORRT, path.parent.name)
    assert record.plans["denoiser"].trials == (0.01, 0.02, 0.03)
    assert record.plans["vae_decoder"].trials == (0.1, 0.2, 0.3)
    assert record.plans["text_encoder"].trials == ()
    for name, (_, text) in fastest.items():
        assert (path.parent / f"{name}.plan").read_text() == text
    assert {file.name for file in path.parent.iterdir()} == {"engine.json", *record.files}
    options = record.key.options
    assert options["tune"] == "3"
    assert options["builder_optimization_level"] == "5"
    assert options["tiling_optimization_level"] == "FULL"
    assert not build_engines(bundle, TENSORRT, BuildOptions(tune=3), measure=measure)
    assert build_engines(bundle, CPU, BuildOptions(tune=3)), "the processor has nothing to tune"


def test_tuning_is_asked_of_the_library(product: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.MonkeyPatch.context() as patch:
        be(ADA, patch)
        compiler = RtxCompiler(BuildOptions(tune=2))
    compiler._trt = recording = Recording()
    compiler.build("product", product, tmp_path, nothing)
    assert recording.seen[0]["level"] == 5
    assert recording.seen[0]["tiling"] == trt.TilingOptimizationLevel.FULL


def test_tuning_needs_a_gpu_to_measure_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    be(NO_GPU, monkeypatch)
    with pytest.raises(ArgumentError, match="tune: expected an RTX GPU, on which the builds are timed, found no NV"):
        build_engines(bundle, RTX, BuildOptions(tune=3), measure=lambda *_: 1.0)
    be(ADA, monkeypatch)
    with pytest.raises(ArgumentError, match="tune: expected a function that measures plans, found none"):
        build_engines(bundle, TENSORRT, BuildOptions(tune=3))
    with pytest.raises(ArgumentError, match="tune: expected a number of builds, found -1"):
        build_engines(bundle, TENSORRT, BuildOptions(tune=-1))
