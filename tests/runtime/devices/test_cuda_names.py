"""Every CUDA function and constant that the runtime names exists in cuda-bindings, with as many parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import koala_runtime.devices.cuda
from koala_bundle.errors import TargetError

runtime: Any = pytest.importorskip("cuda.bindings.runtime")
SOURCE = Path(koala_runtime.devices.cuda.__file__).read_text(encoding="utf-8")


def problems(source: str) -> list[str]:
    """Return what of ``source`` cuda-bindings lacks: ``cuda...`` members and calls, also those by way of ``_do``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, count = getattr(node.func, "attr", ""), len(node.args)
            if name == "_do":
                name, count = str(getattr(node.args[0], "value", "")), count - 1
            if not name.startswith("cuda") or name == "cuda_runtime":
                continue
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                found.append(f"{name}: arguments that cannot be counted")
            elif count != parameters(name):
                found.append(f"{name} takes {parameters(name)} arguments, not {count}")
        elif isinstance(node, ast.Attribute) and re.match(r"cuda[A-Z]", node.attr):
            owners = [runtime, *(getattr(runtime, kind) for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"))]
            if not any(hasattr(owner, node.attr) for owner in owners):
                found.append(f"{node.attr} does not exist")
    return found


def parameters(name: str) -> int | None:
    """Parameters without defaults, from the first line of the docstring; None for what does not exist."""
    first = (getattr(runtime, name, type).__doc__ or "").strip().split("\n")[0]
    told = re.fullmatch(rf"{name}\((.*)\)", first)
    return None if told is None else len([part for part in told[1].split(",") if part.strip() and "=" not in part])


def test_every_name_exists() -> None:
    assert len(re.findall(r"cuda[A-Z]\w+", SOURCE)) > 25
    assert problems(SOURCE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"cudaGraphLaunch"', '"cudaGraphStart"', "cudaGraphStart takes None arguments, not 2"),
        ("(nbytes)", "(nbytes, 0)", "cudaMalloc takes 1 arguments, not 2"),
        ('Upload", graph, self.stream', 'Upload", graph', "cudaGraphUpload takes 2 arguments, not 1"),
        ("cudaMemcpyHostToDevice", "cudaMemcpyHostToGpu", "cudaMemcpyHostToGpu does not exist"),
        ("ModeThreadLocal", "ModeThread", "cudaStreamCaptureModeThread does not exist"),
    ],
)
def test_a_wrong_name_shows(right: str, wrong: str, said: str) -> None:
    assert right in SOURCE
    assert said in problems(SOURCE.replace(right, wrong))


def test_without_a_driver_there_is_one_sentence() -> None:
    status, _ = runtime.cudaGetDeviceCount()
    if int(status) == 0:
        pytest.skip("there is a GPU here")
    with pytest.raises(
        TargetError, match=r"the NVIDIA driver: expected one for CUDA 13, found none \(.*CUDA error 35\)"
    ):
        koala_runtime.devices.cuda.CudaDevice()


class OldDriver:
    """Answers as the CUDA runtime does over a driver for CUDA 12.4."""

    @staticmethod
    def cudaGetDeviceCount() -> tuple[int, None]:
        return 35, None

    @staticmethod
    def cudaRuntimeGetVersion() -> tuple[int, int]:
        return 0, 13000

    @staticmethod
    def cudaDriverGetVersion() -> tuple[int, int]:
        return 0, 12040

    @staticmethod
    def cudaGetErrorString(status: int) -> tuple[int, bytes]:
        return 0, b"CUDA driver version is insufficient for CUDA runtime version"


def test_an_old_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.bindings

    monkeypatch.setattr(cuda.bindings, "runtime", OldDriver)
    with pytest.raises(TargetError, match=r"expected one for CUDA 13, found CUDA 12\.4 \(.*\); update the driver"):
        koala_runtime.devices.cuda.cuda_runtime()
