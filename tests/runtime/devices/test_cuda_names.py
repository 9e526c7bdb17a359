"""Every name of the CUDA driver API that the runtime uses exists in cuda-bindings, with as many parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import koala_runtime.devices.cuda
from koala_bundle.errors import TargetError
from koala_machine.driver import query_driver

driver: Any = pytest.importorskip("cuda.bindings.driver")
SOURCE = Path(koala_runtime.devices.cuda.__file__).read_text(encoding="utf-8")
BY_NAME = ("_do", "_own", "_free")  # methods whose first argument names a function
STATUSES = {"_SUCCESS": "SUCCESS", "_OUT_OF_MEMORY": "ERROR_OUT_OF_MEMORY"}
STATUSES["_CAPTURE_INVALIDATED"] = "ERROR_STREAM_CAPTURE_INVALIDATED"


def problems(source: str) -> list[str]:
    """Return what of ``source`` cuda-bindings lacks: members and calls of ``cu...``, also those by way of BY_NAME."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, count = getattr(node.func, "attr", ""), len(node.args)
            if name in BY_NAME and isinstance(node.args[0], ast.Constant):
                # A function that frees takes its handle, and nothing else.
                count = count - 1 if name == "_do" else 1
                name = str(node.args[0].value)
            if not re.match(r"cu[A-Z]", name):
                continue
            wanted = parameters(name)
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                count = wanted or 0 if name == "cuEventElapsedTime" else -1  # of a pair
            if count != wanted:
                found.append(f"{name} takes {wanted} arguments, not {count}")
        elif isinstance(node, ast.Constant) and re.fullmatch(r"cu[A-Z]\w+", str(node.value)):
            if parameters(str(node.value)) is None:
                found.append(f"{node.value} does not exist")
        elif isinstance(node, ast.Attribute) and re.match(r"cu[A-Z]|CU", node.attr):
            owners = (driver, driver.CUstreamCaptureMode, driver.CUdevice_attribute)
            found += [f"{node.attr} does not exist"] * (not any(hasattr(owner, node.attr) for owner in owners))
    return found


def parameters(name: str) -> int | None:
    """Parameters, from the first line of the docstring; None for what does not exist."""
    first = (getattr(driver, name, type).__doc__ or "").strip().split("\n")[0]
    told = re.fullmatch(rf"{name}\((.*)\)", first)
    return None if told is None else len([part for part in told[1].split(",") if part.strip()])


def test_every_name_exists() -> None:
    assert len(set(re.findall(r"\bcu[A-Z]\w+", SOURCE))) > 25
    assert problems(SOURCE) == []


def test_every_status_is_that_of_the_driver() -> None:
    for name, status in STATUSES.items():
        assert getattr(koala_runtime.devices.cuda, name) == int(getattr(driver.CUresult, f"CUDA_{status}"))
    assert int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == koala_runtime.devices.cuda._NON_BLOCKING


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"cuGraphLaunch"', '"cuGraphStart"', "cuGraphStart takes None arguments, not 2"),
        ("cuMemAlloc(nbytes)", "cuMemAlloc(nbytes, 0)", "cuMemAlloc takes 1 arguments, not 2"),
        ('Upload", graph, self.stream', 'Upload", graph', "cuGraphUpload takes 2 arguments, not 1"),
        ('_own("cuStreamDestroy"', '_own("cuStreamDrop"', "cuStreamDrop takes None arguments, not 1"),
        ('[("cuGraphDestroy"', '[("cuGraphFree"', "cuGraphFree does not exist"),
        ("MODE_THREAD_LOCAL", "MODE_THREAD", "CU_STREAM_CAPTURE_MODE_THREAD does not exist"),
    ],
)
def test_a_wrong_name_shows(right: str, wrong: str, said: str) -> None:
    assert right in SOURCE
    assert said in problems(SOURCE.replace(right, wrong))


def test_without_a_driver_there_is_one_sentence() -> None:
    if query_driver().cuda_version is not None:
        pytest.skip("there is a driver here")
    with pytest.raises(
        TargetError, match=r"the NVIDIA driver: expected one for CUDA 13, found none \(.*\); run .*\(target cpu\)"
    ):
        koala_runtime.devices.cuda.CudaDevice()


@pytest.mark.parametrize(
    ("version", "status", "message"),
    [
        (12040, 0, r"expected one for CUDA 13, found CUDA 12\.4; update the driver, or run on the processor"),
        # The driver's library and its kernel module are of two versions: the machine has to be started again.
        (13000, 803, r"found unsupported display driver, CUresult 803; run `nvidia-smi`, or run on the processor"),
    ],
)
def test_only_an_old_driver_is_to_be_updated(
    version: int, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cuda.bindings

    answers = SimpleNamespace(
        CUDA_VERSION=13050,
        cuDriverGetVersion=lambda: (0, version),
        cuInit=lambda flags: (status,),
        cuGetErrorString=lambda status: (0, b"unsupported display driver"),
    )
    monkeypatch.setattr(cuda.bindings, "driver", answers)
    with pytest.raises(TargetError, match=message):
        koala_runtime.devices.cuda.open_driver()
