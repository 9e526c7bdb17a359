"""What is asked of the compilers, and what is built again when something changed; no GPU is needed for either."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from koala_bundle.engine_record import engine_folder, read_engine_record
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import CPU, RTX, TENSORRT, Target
from koala_cli.main import run_app
from koala_engines.build import build_engines, build_targets
from koala_engines.options import BuildOptions
from koala_engines.rtx import RTX_CAPABILITIES, RtxCompiler
from koala_engines.tensorrt import TIMING_ITERATIONS, TensorRTCompiler
from koala_machine.support import RTX_PORTABLE, TURING
from koala_runtime.preflight import check_plan
from tests.support.fleet import CUDA_12, GB, Compiled, Machine, be, change_component, make_bundle

ADA = Machine((("NVIDIA GeForce RTX 4090", "8.9", 24 * GB),))
TURING_GPU = Machine((("NVIDIA GeForce RTX 2080 Ti", TURING, 11 * GB),))
NO_GPU = Machine((), cuda=None)


def nothing(_: float) -> None:
    pass


def library(**members: Any) -> ModuleType:
    """A stand-in for TensorRT's Python module."""
    module = ModuleType("a_library")
    vars(module).update(members)
    return module


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """An ONNX file of one product of matrices, with its weights beside it."""
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float16), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [32, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = tmp_path / "product.onnx"
    onnx.save(model, path, save_as_external_data=True, location="product.onnx.data", size_threshold=0)
    return path


class Recording:
    """The real TensorRT-RTX, but that it shows the configuration with which a plan is built."""

    def __init__(self) -> None:
        self.real = pytest.importorskip("tensorrt_rtx")
        self.seen: list[dict[str, Any]] = []

    def Builder(self, logger: Any) -> RecordingBuilder:
        return RecordingBuilder(self.real, self.real.Builder(logger), self.seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class RecordingBuilder:
    def __init__(self, trt: Any, real: Any, seen: list[dict[str, Any]]) -> None:
        self._trt, self._real, self._seen = trt, real, seen
        self.create_network = real.create_network
        self.create_builder_config = real.create_builder_config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._seen.append(
            {
                "user allocation": config.get_flag(self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION),
                "capabilities": config.num_compute_capabilities,
                "level": config.builder_optimization_level,
                "tiling": config.tiling_optimization_level,
            }
        )
        return self._real.build_serialized_network(network, config)


def build_rtx(options: BuildOptions, source: Path, folder: Path) -> tuple[bytes, dict[str, Any], RtxCompiler]:
    compiler = RtxCompiler(options)
    compiler._trt = recording = Recording()
    (plan,) = compiler.build("product", source, folder, nothing)
    return plan.read_bytes(), recording.seen[0], compiler


def test_rtx_plans_can_be_captured(product: Path, tmp_path: Path) -> None:
    """F1. REQUIRE_USER_ALLOCATION: TensorRT-RTX then never allocates while a plan runs, which capture forbids."""
    _, asked, compiler = build_rtx(BuildOptions(), product, tmp_path)
    assert asked["user allocation"] is True
    assert asked["level"] == 3
    assert compiler.key().options["require_user_allocation"] == "1"


# Bit of each capability in byte 32 of a plan's header, as seen in 1.7.
BITS = {capability: 1 << index for index, capability in enumerate(RTX_CAPABILITIES)}


@pytest.mark.parametrize(
    ("asked", "listed"),
    [((), RTX_PORTABLE), (RTX_PORTABLE, RTX_PORTABLE), ((TURING,), (TURING,)), (("8.9", "8.6"), ("8.6", "8.9"))],
)
def test_the_record_lists_what_an_rtx_plan_runs_on(
    product: Path, tmp_path: Path, asked: tuple[str, ...], listed: tuple[str, ...]
) -> None:
    """F3, F4. The list is never "all": that is not every GPU, and not even every one that the library knows."""
    plan, _, compiler = build_rtx(BuildOptions(compute_capabilities=asked), product, tmp_path)
    assert compiler.key().options["compute_capabilities"] == ",".join(listed)
    assert {capability for capability, bit in BITS.items() if plan[32] & bit} == {*listed}
    assert compiler.variant == (TURING if listed == (TURING,) else "")


def test_turing_is_built_for_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, variant in ((TURING_GPU, TURING), (ADA, ""), (NO_GPU, "")):
        be(machine, monkeypatch)
        assert RtxCompiler(BuildOptions()).variant == variant
    with pytest.raises(ArgumentError, match=r"expected 7\.5 \(Turing\) by itself"):
        RtxCompiler(BuildOptions(compute_capabilities=(TURING, "8.6")))


def test_a_plan_is_looked_at_before_it_is_loaded(product: Path, tmp_path: Path) -> None:
    """Without a GPU TensorRT-RTX gives no diagnosis of a good plan, but knows a damaged one."""
    trt = pytest.importorskip("tensorrt_rtx")
    build_rtx(BuildOptions(), product, tmp_path)
    check_plan(trt, tmp_path / "product.plan")
    (tmp_path / "junk.plan").write_bytes(b"\0" * 64)
    with pytest.raises(TargetError, match="expected a plan that TensorRT-RTX can run on this GPU, found damaged plans"):
        check_plan(trt, tmp_path / "junk.plan")


OLD_DRIVER = Machine(ADA.gpus, cuda="12.4")


def no_builder(logger: Any) -> Any:
    raise TypeError("pybind11::init(): factory function returned nullptr")


def test_an_old_driver_is_a_sentence(tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5. The libraries make no builder then, and say so by a TypeError."""
    be(OLD_DRIVER, monkeypatch)
    for target, compiler in ((TENSORRT, TensorRTCompiler), (RTX, RtxCompiler)):
        wheel = "tensorrt-cu13" if target == TENSORRT else "tensorrt-rtx-cu13"
        with pytest.raises(TargetError) as caught:
            made = compiler(BuildOptions())
            made._trt = library(Builder=no_builder, ILogger=Logger, __version__="1", IProgressMonitor=object)
            made.build("product", product, tmp_path, nothing)
        extra = f"{target}-cu12"
        assert str(caught.value) == (
            f"target {target}: expected an NVIDIA driver for CUDA 13, which {wheel} needs, found one for CUDA 12.4; "
            f"update the NVIDIA driver to r580 or newer, or install `koala-trt[{extra}]` in a new environment."
        )


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


def test_a_library_without_a_builder_is_a_sentence(
    tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(ADA, monkeypatch)
    compiler = RtxCompiler(BuildOptions())
    compiler._trt = library(Builder=no_builder, ILogger=Logger, __version__="1", IProgressMonitor=object)
    with pytest.raises(TargetError, match="found pybind11::init\\(\\): factory function returned nullptr; update"):
        compiler.build("product", product, tmp_path, nothing)


def test_a_target_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)
    be(OLD_DRIVER, monkeypatch)
    results = build_targets(bundle, [TENSORRT, RTX, CPU])
    assert isinstance(results[TENSORRT], TargetError)
    assert results[RTX] is results[CPU] is True
    assert not engine_folder(bundle, TENSORRT).exists()
    compiled.since()
    change_component(bundle, "denoiser")
    command = ["engines", str(bundle), "--target", "tensorrt", "--target", "rtx", "--target", "cpu"]
    assert run_app(command) == 2
    shown = capsys.readouterr()
    assert "rtx: built" in shown.out
    assert "cpu: built" in shown.out
    assert shown.err.count("which tensorrt-cu13 needs, found one for CUDA 12.4") == 1
    assert compiled.since() == ["rtx denoiser", "cpu denoiser"]


def test_the_wheels_for_the_driver_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    be(Machine(ADA.gpus, cuda="12.4", wheels=CUDA_12), monkeypatch)
    assert build_engines(bundle, TENSORRT)


@pytest.mark.parametrize("target", [TENSORRT, RTX, CPU])
def test_one_changed_component_is_one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)
    be(ADA, monkeypatch)
    assert build_engines(bundle, target)
    assert sorted(line.split()[-1] for line in compiled.since()) == sorted(components(bundle))
    assert not build_engines(bundle, target)
    folder = next((bundle / "engines").rglob("engine.json")).parent
    before = {path.name: path.read_text() for path in folder.glob("*.plan")}

    change_component(bundle, "denoiser")
    lines: list[str] = []
    assert build_engines(bundle, target, report=lines.append)
    assert any("ONNX changed (onnx/denoiser.onnx)" in line for line in lines)
    assert [line.split()[-1] for line in compiled.since()] == ["denoiser"]
    after = {path.name: path.read_text() for path in folder.glob("*.plan")}
    assert {name for name in before if before[name] != after[name]} == {"denoiser.plan"}
    assert not build_engines(bundle, target)

    (folder / "vae_decoder.plan").write_text("x" * len(after["vae_decoder.plan"]))
    assert build_engines(bundle, target, report=lines.append)
    assert any("plans are missing, cut short or damaged" in line for line in lines)
    assert [line.split()[-1] for line in compiled.since()] == ["vae_decoder"]


def components(bundle: Path) -> list[str]:
    return [entry["name"] for entry in json.loads((bundle / "manifest.json").read_text())["components"]]


def test_a_stopped_build_resumes_with_what_is_still_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)

    def stop(what: str, done: float | None = None) -> None:
        if "built in" in what and "text_encoder_2" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, CPU, report=stop)
    compiled.since()
    change_component(bundle, "text_encoder")
    build_engines(bundle, CPU)
    again = {line.split()[-1] for line in compiled.since()}
    assert again == {*components(bundle)} - {"text_encoder_2"}


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
