"""Where engines lie, and the table of wheels, drivers and GPUs that messages and docs are made from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from koala_bundle.engine_record import (
    ENGINE_RECORD,
    GPU,
    build_command,
    engine_folder,
    engine_variants,
    gpu_variant,
    read_engine_record,
)
from koala_bundle.errors import BundleError, TargetError
from koala_bundle.targets import CPU, CUDA, RTX, SIMULATED, TARGETS, TENSORRT, Target
from koala_engines.build import build_engines
from koala_machine.driver import Driver
from koala_machine.support import (
    CAPABILITIES,
    WHEELS,
    check_driver,
    install_command,
    suitable_wheel,
    supports,
    wheels,
)
from tests.support.fleet import Compiled, Machine, be, make_bundle

ROOT = Path(__file__).resolve().parents[2]
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "capability", "variant"),
    [
        ("NVIDIA GeForce RTX 3060 Ti", "8.6", "nvidia-geforce-rtx-3060-ti-8.6"),
        ("NVIDIA A100-SXM4-40GB", "8.0", "nvidia-a100-sxm4-40gb-8.0"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "8.0", "nvidia-a100-sxm4-40gb-mig-1g-5gb-8.0"),
        ("../../etc/passwd", "8.6", "etc-passwd-8.6"),
    ],
)
def test_a_model_of_gpu_is_a_folder(tmp_path: Path, name: str, capability: str, variant: str) -> None:
    assert gpu_variant(GPU(name, capability)) == variant
    assert engine_folder(tmp_path, TENSORRT, variant) == tmp_path / "engines" / "tensorrt" / variant


def test_sets_of_plans_are_found(tmp_path: Path) -> None:
    for folder in ("rtx", "rtx-7.5", "rtxt", "tensorrt/a-8.6", "tensorrt/.b-8.6.partial", "tensorrt", "cpu"):
        (tmp_path / "engines" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "engines" / folder / ENGINE_RECORD).write_text("{}")
    (tmp_path / "engines" / "rtx-8.6").mkdir()  # nothing was finished there
    assert engine_variants(tmp_path, RTX) == ["", "7.5"]
    assert engine_variants(tmp_path, TENSORRT) == ["a-8.6"]
    assert engine_variants(tmp_path, CPU) == engine_variants(tmp_path, SIMULATED) == [""]
    assert engine_variants(tmp_path / "nowhere", RTX) == []
    assert build_command(tmp_path, RTX, "7.5") == f"`koala engines {tmp_path} --target rtx --compute-capability 7.5`"
    assert build_command(tmp_path, TENSORRT, "a-8.6") == f"`koala engines {tmp_path} --target tensorrt`"
    with pytest.raises(TargetError, match="expected built engines, found none"):
        read_engine_record(tmp_path, RTX, "8.6")


def test_a_build_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)
    be(Machine((("NVIDIA L4", "8.9", 24_000_000_000),)), monkeypatch)
    (bundle / "onnx" / "denoiser.onnx").write_text("is damaged")
    with pytest.raises(BundleError, match="SHA-256"):
        build_engines(bundle, TENSORRT)
    assert not (bundle / "engines").exists()
    assert not compiled.log


def test_what_an_interrupted_swap_left_is_found(tmp_path: Path) -> None:
    for folder in ("tensorrt/.a-8.6.old", ".rtx-7.5.old"):
        (tmp_path / "engines" / folder).mkdir(parents=True)
        (tmp_path / "engines" / folder / ENGINE_RECORD).write_text("{}")
    assert engine_variants(tmp_path, TENSORRT) == ["a-8.6"]
    assert engine_variants(tmp_path, RTX) == ["7.5"]


def test_the_table_names_the_extras_that_there_are() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for wheel in WHEELS:
        packages = {dependency.split(">")[0].split("[")[0] for dependency in extras[wheel.extra]}
        assert wheel.package in packages
        cuda = next((each for each in extras[wheel.extra] if each.startswith("cuda-bindings")), None)
        assert (cuda is None) == (wheel.cuda is None)
        assert cuda is None or f"<{(wheel.cuda or 0) + 1}" in cuda, "bindings of the CUDA version of the wheel"
        driver = f"{wheel.branch} or newer (CUDA {wheel.cuda})" if wheel.branch else "none"
        row = rf"\| `{wheel.extra}` \| `{wheel.target}` \| `{wheel.package}`,[^|]* \| {re.escape(driver)} \|"
        assert re.search(row, MODELS), wheel.extra
    assert {target for target in TARGETS if target.needs_gpu} == CAPABILITIES.keys()
    for target in (*TARGETS, SIMULATED):
        assert wheels(target)


def driver(cuda: str | None) -> Driver:
    return Driver(cuda, None, 0, "no GPU")


@pytest.mark.parametrize(
    ("target", "cuda", "extra"),
    [
        (RTX, None, "rtx"),
        (RTX, "13.1", "rtx"),
        (RTX, "13.0", "rtx"),
        (RTX, "12.9", "rtx-cu12"),
        (RTX, "12.2", "rtx-cu12"),
        (RTX, "11.8", None),
        (TENSORRT, "12.4", "tensorrt-cu12"),
        (TENSORRT, "13.0", "tensorrt"),
        (CPU, "11.8", "cpu"),
        (CPU, None, "cpu"),
    ],
)
def test_the_extra_for_a_driver(target: Target, cuda: str | None, extra: str | None) -> None:
    wheel = suitable_wheel(target, driver(cuda))
    assert (wheel.extra if wheel else None) == extra
    if extra:
        assert install_command(target, driver(cuda)) == f"`pip install koala-trt[{extra}]`"


@pytest.mark.parametrize(
    ("capability", "targets"),
    [
        ("6.1", set()),
        ("7.5", {TENSORRT, RTX, CUDA}),
        ("8.0", {TENSORRT, RTX, CUDA}),
        ("9.0", {TENSORRT, CUDA}),
        ("10.0", {TENSORRT, CUDA}),
        ("12.0", {TENSORRT, RTX, CUDA}),
    ],
)
def test_which_targets_run_on_a_gpu(capability: str, targets: set[Target]) -> None:
    assert {target for target in (TENSORRT, RTX, CUDA) if supports(target, GPU("a GPU", capability))} == targets


def test_a_driver_is_checked_against_the_installed_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    be(Machine((), wheels=("tensorrt-rtx-cu13",)), monkeypatch)
    with pytest.raises(TargetError, match=r"install `koala-trt\[rtx-cu12\]`"):
        check_driver(RTX, driver("12.8"))
    check_driver(RTX, driver("13.0"))
    check_driver(TENSORRT, driver("12.8"))  # not installed: that is another error's matter
    be(Machine((), wheels=("tensorrt-rtx-cu12",)), monkeypatch)
    check_driver(RTX, driver("12.8"))


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F10. It is an extra: what needs it says so, and the rest works."""
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    build_engines(bundle, CPU)
    (tmp_path / "main.py").write_text(
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from koala_cli.main import run_app\n"
        "sys.exit(run_app(sys.argv[1:]))\n"
    )

    def koala(*command: str) -> tuple[int, str]:
        arguments = [sys.executable, str(tmp_path / "main.py"), *command]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    missing = "target cpu: expected the Python package onnxruntime, found none; install it with `pip install "
    code, said = koala("run", str(bundle), "a koala", "--output", str(tmp_path / "koala.png"))
    assert (code, said.strip()) == (2, f"error {missing}koala-trt[cpu]`.")
    code, said = koala("engines", str(bundle), "--target", "cpu")
    assert code == 2
    assert f"{missing}koala-trt[cpu]`." in said
    for command in (("inspect", str(bundle)), ("doctor",)):
        code, said = koala(*command)
        assert code == 0, said
    assert "onnxruntime" in said
