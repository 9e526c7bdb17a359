"""The ``cuda`` target: its plans are the ONNX files, its options ours, and nothing runs on the processor in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import koala_runtime.devices.cpu
import koala_runtime.devices.onnx_cuda
import koala_runtime.selection
from koala_bundle.engine_record import GPU, engine_folder, read_engine_record
from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA
from koala_engines.build import build_engines
from koala_machine.driver import Driver, query_driver
from koala_runtime import Pipeline
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.cpu import CpuDevice, OrtEngine
from koala_runtime.devices.onnx_cuda import PROVIDER, load_on_gpu, provider_options
from koala_runtime.preflight import check_machine, obstacle
from koala_runtime.selection import open_engines
from tests.support.fleet import CUDA_13, H100, Compiled, Machine, be, make_bundle

MACHINE = Machine((H100,), wheels=(*CUDA_13, "onnxruntime-gpu"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the installed ONNX Runtime seem to be built with CUDA."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])


def test_plans_share_the_weights(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = shutil.copytree(bundle("koala-700m-like", precision="fp16"), tmp_path / "bundle")
    assert build_engines(path, CUDA)
    assert not build_engines(path, CUDA)
    for name, plan in read_engine_record(path, CUDA).plans.items():
        source, linked = path / "onnx" / f"{name}.onnx.data", engine_folder(path, CUDA) / f"{name}.onnx.data"
        assert plan.files[1] == linked.name
        assert source.stat().st_ino == linked.stat().st_ino, "no second copy of gigabytes"


def test_a_gpu_without_plans_of_its_own_takes_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    monkeypatch.setattr("koala_engines.cuda.write_fused", shutil.copyfile)
    monkeypatch.setattr("koala_engines.cuda.of_graph", lambda path: {"MatMul": 1})
    build_engines(bundle, CUDA)
    build_engines(bundle, CPU)
    be(MACHINE, monkeypatch)
    assert open_engines(bundle).target == CPU  # the installed ONNX Runtime is that of the processor
    assert "expected ONNX Runtime with its CUDA provider, found the package onnxruntime, which has none" in caplog.text
    with pytest.raises(TargetError, match=r"uninstall onnxruntime, then `pip install koala-trt\[cuda\]`"):
        open_engines(bundle, "cuda")
    with_cuda(monkeypatch)
    assert open_engines(bundle).target == CUDA
    be(Machine(MACHINE.gpus, cuda="12.8", wheels=MACHINE.wheels), monkeypatch)
    with pytest.raises(TargetError, match=r"CUDA 13, which onnxruntime-gpu needs, found one for CUDA 12\.8; update"):
        check_machine(CUDA, Driver("12.8", GPU("a GPU", "9.0"), 0, None))


def test_a_provider_that_does_not_load_is_refused(model: Path) -> None:
    """ONNX Runtime would go on with the processor, and only warn."""
    if PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(TargetError, match="expected ONNX Runtime's CUDA provider, found that it does not load"),
    ):
        load_on_gpu(model, SimpleNamespace(stream=0, wait=None), 0)  # type: ignore[arg-type]


def test_our_stream_and_memory_are_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    bound: list[tuple[Any, ...]] = []
    device: Any = SimpleNamespace(stream=1234, wait=lambda: bound.append(("wait",)))

    class Session:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            asked["providers"] = providers

        def get_providers(self) -> list[str]:
            return [PROVIDER, "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="x", type="tensor(float16)", shape=[4])]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name="y", type="tensor(float16)", shape=[4])]

        def get_input_memory_infos(self) -> list[Any]:
            return [SimpleNamespace(name=asked["place"])]

        def io_binding(self) -> Any:
            return SimpleNamespace(
                bind_input=lambda *arguments: bound.append(arguments),
                bind_output=lambda *arguments: bound.append(arguments),
            )

        def run_with_iobinding(self, binding: Any) -> None:
            bound.append(("run",))

    monkeypatch.setattr(koala_runtime.devices.cpu.ort, "InferenceSession", Session)
    engine = load_on_gpu(model, device, 1)
    assert asked["providers"] == [(PROVIDER, provider_options(1234, 1)), "CPUExecutionProvider"]
    assert provider_options(1234, 1)["user_compute_stream"] == "1234"
    assert provider_options(1234, 1)["device_id"] == "1"
    tensors = {"x": Tensor(0x1000, "float16", (4,)), "y": Tensor(0x2000, "float16", (4,))}
    half = np.dtype("float16")
    x, y = ("x", "cuda", 1, half, (4,), 0x1000), ("y", "cuda", 1, half, (4,), 0x2000)
    asked["place"] = "Cuda"
    run = engine.bind(tensors, 0)
    assert [run(), run()] == [True, True]
    assert bound == [x, y, ("run",), ("run",)]
    bound.clear()
    asked["place"] = "Cpu"
    run = engine.bind(tensors, 0)
    assert [run(), run()] == [True, True]
    again = [("wait",), x, ("run",)]
    assert bound == [x, y, *again, *again], "what the processor reads is copied when it is bound"


def test_the_loop_draws_with_these_plans(
    bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the processor in the place of the GPU, where GroupNorm has no kernel: float16 tensors, lists as graphs."""
    monkeypatch.setattr("koala_engines.cuda_graph._Graph.fuse_group_norm", lambda *_: None)
    path = shutil.copytree(bundle("koala-700m-like", precision="fp16"), tmp_path / "bundle")
    build_engines(path, CUDA)

    class Processor(CpuDevice):
        stream = 0

        def __init__(self, device: int | str) -> None:
            super().__init__()
            assert device == 0

    monkeypatch.setattr(koala_runtime.devices.onnx_cuda, "UncapturedCudaDevice", Processor)
    monkeypatch.setattr(koala_runtime.devices.onnx_cuda, "load_on_gpu", lambda file, device, index: OrtEngine(file))
    with_cuda(monkeypatch)
    monkeypatch.setattr(koala_runtime.selection, "query_driver", MACHINE.query_driver)
    with Pipeline(path, "cpu") as cpu, Pipeline(path, "cuda") as pipe:
        assert pipe.executor.half == "float16"
        wanted, drawn = (np.asarray(each("a koala", seed=1).images[0]).astype(float) for each in (cpu, pipe))
        assert 10 * np.log10(255**2 / max(float(np.mean((wanted - drawn) ** 2)), 1e-9)) > 25
    shutil.rmtree(path)


@pytest.mark.gpu
@pytest.mark.skipif(query_driver().gpu is None, reason="there is no GPU here")
def test_a_gpu_draws_with_onnx_runtime(bundle: Callable[..., Path], tmp_path: Path) -> None:
    if problem := obstacle(CUDA):
        pytest.skip(problem)
    path = shutil.copytree(bundle("koala-700m-like", precision="fp16"), tmp_path / "bundle")
    build_engines(path, CUDA)
    with Pipeline(path, "cpu") as cpu, Pipeline(path, "cuda") as gpu:
        wanted, drawn = (np.asarray(each("a koala", seed=1).images[0]).astype(float) for each in (cpu, gpu))
        assert 10 * np.log10(255**2 / max(float(np.mean((wanted - drawn) ** 2)), 1e-9)) > 25
        assert len(gpu("a koala", seed=1, timings=True).timings["denoiser"]) == 4
