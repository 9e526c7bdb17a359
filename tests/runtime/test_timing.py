"""The time of one run of a plan, measured on devices that are here."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from koala_bundle.errors import TargetError
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import TENSORRT
from koala_bundle.tensors import IOTensor
from koala_machine.driver import query_driver
from koala_runtime.devices.cpu import CpuDevice, OrtEngine
from koala_runtime.devices.simulated import SimulatedDevice, SimulatedEngine
from koala_runtime.timing import seconds_of_a_run, time_plan

SIDE = 256


def plan(path: Path, products: int) -> tuple[Path, ComponentEntry]:
    """A chain of products of matrices, and its entry in a manifest."""
    weights = onnx.numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "w")
    names = ["x", *(f"t{index}" for index in range(products - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    tensors = [IOTensor(name, "float16", (SIDE, SIDE)) for name in ("x", "y")]  # float32 on these devices
    return path, ComponentEntry("denoiser", (tensors[0],), (tensors[1],))


def test_more_work_takes_longer(tmp_path: Path) -> None:
    times = []
    for products in (1, 60):
        path, entry = plan(tmp_path / f"{products}.onnx", products)
        device = CpuDevice()
        times.append(seconds_of_a_run(device, lambda path=path: OrtEngine(path), entry, "float32"))
        assert not device._memory
    assert 0 < times[0] < times[1]


def test_everything_is_freed(tmp_path: Path) -> None:
    path, entry = plan(tmp_path / "one.onnx", 1)
    device = SimulatedDevice()
    engines = []

    def load() -> SimulatedEngine:
        engines.append(SimulatedEngine(device, "denoiser", path, 1000, 2000))
        return engines[-1]

    assert seconds_of_a_run(device, load, entry, "float32") > 0
    assert (device.live, device.pinned) == ({}, {})
    assert device.log.count("denoiser") == 23
    device.failures["denoiser"] = "an illegal address"
    with pytest.raises(Exception, match="an illegal address"):
        seconds_of_a_run(device, load, entry, "float32")
    assert (device.live, device.pinned) == ({}, {})


@pytest.mark.skipif(query_driver().gpu is not None, reason="there is a GPU here")
def test_without_a_gpu(tmp_path: Path) -> None:
    path, entry = plan(tmp_path / "one.onnx", 1)
    with pytest.raises(TargetError):
        time_plan(TENSORRT, entry, path)
