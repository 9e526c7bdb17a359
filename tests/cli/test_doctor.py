"""``koala doctor`` on the machines of a fleet: what to install, what each target can do, and why not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from koala_cli.main import run_app
from koala_machine.support import WHEELS, requirement
from tests.support.fleet import (
    A100,
    CUDA_12,
    CUDA_13,
    GTX_1080,
    H100,
    RTX_2080_TI,
    RTX_3060_TI,
    RTX_4090,
    Machine,
    be,
)

ROOT = Path(__file__).resolve().parents[2]
NOTHING = ("onnxruntime",)

# Machine; targets that it builds, targets that it runs; the last line; a part of the reason for each that it does not.
INSTALLED = "target {} is the best for this machine, and its package {} is installed"
INSTALL = "target {} is the best for this machine: `pip install koala-trt[{}]` brings {}"
NO_PROVIDER = "cuda cannot run here: expected ONNX Runtime with its CUDA provider, found the package onnxruntime, which"
OTHER_DRIVER = (
    "{} can{} run here: expected an NVIDIA driver for CUDA 13, which {} needs, found one for CUDA 12.4; update the "
    "NVIDIA driver to r580 or newer, or install `koala-trt[{}]` in a new environment"
)
RTX_LIST = "expected a GPU of compute capability 7.5 or 8.0 or 8.6 or 8.9 or 12.0 or 12.1, found"
CASES: dict[str, tuple[Machine, str, str, str, tuple[str, ...]]] = {
    "3060 Ti": (
        Machine((RTX_3060_TI,), wheels=NOTHING),
        "cuda cpu",
        "cpu",
        INSTALL.format("tensorrt", "tensorrt", "tensorrt-cu13 >=11,<12"),
        (
            "rtx can neither be built nor run here: expected the Python package tensorrt_rtx, found none",
            "install it with `pip install koala-trt[rtx]`",
            "tensorrt can neither be built nor run here: expected the Python package tensorrt, found none",
            "install it with `pip install koala-trt[tensorrt]`",
            "cuda cannot run here: ",
        ),
    ),
    "2080 Ti": (
        Machine((RTX_2080_TI,)),
        "tensorrt rtx cuda cpu",
        "tensorrt rtx cpu",
        INSTALLED.format("tensorrt", "tensorrt-cu13"),
        (NO_PROVIDER,),
    ),
    "1080": (
        Machine((GTX_1080,)),
        "rtx cuda cpu",
        "cpu",
        INSTALLED.format("cpu", "onnxruntime"),
        (
            "tensorrt can neither be built nor run here: expected a GPU of compute capability 7.5 or newer, found",
            f"rtx cannot run here: {RTX_LIST} NVIDIA GeForce GTX 1080 (compute capability 6.1); run target cpu",
            "cuda cannot run here: expected a GPU of compute capability 7.5 or newer",
        ),
    ),
    "4090 on a CUDA 12 driver, wheels for 13": (
        Machine((RTX_4090,), cuda="12.4"),
        "rtx cuda cpu",
        "cpu",
        INSTALL.format("tensorrt", "tensorrt-cu12", "tensorrt-cu12 >=11,<12"),
        (
            OTHER_DRIVER.format("tensorrt", " neither be built nor", "tensorrt-cu13", "tensorrt-cu12"),
            OTHER_DRIVER.format("rtx", "not", "tensorrt-rtx-cu13", "rtx-cu12"),
            "cuda cannot run here: expected an NVIDIA driver for CUDA 13, which onnxruntime-gpu needs",
        ),
    ),
    "4090 on a CUDA 12 driver, nothing installed": (
        Machine((RTX_4090,), cuda="12.4", wheels=NOTHING),
        "cuda cpu",
        "cpu",
        INSTALL.format("tensorrt", "tensorrt-cu12", "tensorrt-cu12 >=11,<12"),
        (
            "install it with `pip install koala-trt[tensorrt-cu12]`",
            "install it with `pip install koala-trt[rtx-cu12]`",
            "cuda cannot run here: expected an NVIDIA driver for CUDA 13, which onnxruntime-gpu needs",
        ),
    ),
    "4090 on a CUDA 12 driver, wheels for 12": (
        Machine((RTX_4090,), cuda="12.4", wheels=CUDA_12),
        "tensorrt rtx cuda cpu",
        "tensorrt rtx cpu",
        INSTALLED.format("tensorrt", "tensorrt-cu12"),
        ("cuda cannot run here: expected an NVIDIA driver for CUDA 13",),
    ),
    "4090 on a CUDA 11 driver": (
        Machine((RTX_4090,), cuda="11.8", wheels=NOTHING),
        "cuda cpu",
        "cpu",
        INSTALLED.format("cpu", "onnxruntime"),
        (
            "tensorrt can neither be built nor run here: expected an NVIDIA driver for CUDA 12, which tensorrt-cu12 "
            "needs, found one for CUDA 11.8; update the NVIDIA driver to r535 or newer",
            "rtx cannot run here: expected an NVIDIA driver for CUDA 12",
            "rtx cannot be built here: expected the Python package tensorrt_rtx",
            "cuda cannot run here: expected an NVIDIA driver for CUDA 13",
        ),
    ),
    "A100": (
        Machine((A100,)),
        "tensorrt rtx cuda cpu",
        "tensorrt rtx cpu",
        INSTALLED.format("tensorrt", "tensorrt-cu13"),
        (NO_PROVIDER,),
    ),
    "H100": (
        Machine((H100,)),
        "tensorrt rtx cuda cpu",
        "tensorrt cpu",
        INSTALLED.format("tensorrt", "tensorrt-cu13"),
        (
            NO_PROVIDER,
            f"rtx cannot run here: {RTX_LIST} NVIDIA H100 80GB HBM3 (compute capability 9.0); build and run target "
            "tensorrt on this machine, or run target cpu",
        ),
    ),
    "two GPUs": (
        Machine((GTX_1080, A100)),
        "rtx cuda cpu",
        "cpu",
        INSTALLED.format("cpu", "onnxruntime"),
        (
            "tensorrt can neither be built nor run here: expected a GPU",
            "rtx cannot run here: ",
            "cuda cannot run here: ",
        ),
    ),
    "none": (
        Machine((), cuda=None),
        "rtx cuda cpu",
        "cpu",
        INSTALLED.format("cpu", "onnxruntime"),
        (
            "tensorrt cannot be built here: expected the NVIDIA GPU that the plans are for, found no NVIDIA driver",
            "tensorrt cannot run here: expected an NVIDIA GPU, found no NVIDIA driver",
            "rtx cannot run here: expected an NVIDIA GPU, found no NVIDIA driver",
            "cuda cannot run here: ",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_machine_can_do(case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine, built, run, last, reasons = CASES[case]
    be(machine, monkeypatch)
    assert run_app(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for verb, names in (("build", built), ("run", run)):
        assert [name for name, answer in said["targets"].items() if answer[verb] == "yes"] == names.split(), verb
    assert said["install"] == last
    assert run_app(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    for reason in reasons:
        assert any(reason in line for line in lines), reason
    sentences = {line.split()[0] for line in lines if " here: expected " in line}
    assert sentences == {name for name in said["targets"] if name not in run.split()}, "each with a reason"


def test_the_other_of_two_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    be(Machine((GTX_1080, A100)), monkeypatch)
    assert run_app(["doctor", "--json", "--device", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["machine"]["gpu"] == "NVIDIA A100-SXM4-40GB (compute capability 8.0)"
    assert said["machine"]["gpu 0"] == "NVIDIA GeForce GTX 1080 (compute capability 6.1), with --device 0"
    assert said["targets"]["tensorrt"]["run"] == "yes"


def test_packages_and_versions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    be(Machine((RTX_4090,), cuda="12.4", wheels=CUDA_13), monkeypatch)
    assert run_app(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["targets"]
    packages = {name: (each["extra"], each["package"], each["installed"]) for name, each in told.items()}
    assert packages == {
        "tensorrt": ("tensorrt-cu12", "tensorrt-cu12 >=11,<12", "tensorrt-cu13 1.2.3"),
        "rtx": ("rtx-cu12", "tensorrt-rtx-cu12 >=1.7,<2", "tensorrt-rtx-cu13 1.2.3"),
        "cuda": ("-", "-", "-"),
        "cpu": ("cpu", "onnxruntime >=1.23", "onnxruntime 1.2.3"),
    }


def test_versions_are_those_of_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for wheel in WHEELS:
        listed = [re.sub(r"\[.*\]", "", line) for line in extras[wheel.extra]]
        assert requirement(wheel).replace(" ", "") in listed
