"""What is asked of the compilers, and what is built again when something changed; no GPU is needed for either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koala_bundle.engine_record import engine_folder
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.targets import CPU, RTX, TENSORRT, Target
from koala_cli.main import run_app
from koala_engines.build import build_engines, build_targets
from koala_engines.options import BuildOptions
from koala_engines.rtx import RTX_CAPABILITIES, RtxCompiler
from koala_engines.tensorrt import TensorRTCompiler
from koala_machine.support import RTX_PORTABLE, TURING
from koala_runtime.preflight import check_plan
from tests.support.fleet import CUDA_12, Compiled, Machine, be, change_component, make_bundle
from tests.support.recording import ADA, NO_GPU, TURING_GPU, Recording, components, library, nothing


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
