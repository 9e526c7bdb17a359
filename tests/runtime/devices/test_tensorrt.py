"""How a plan of TensorRT is loaded, bound and given up, with a library that answers as it is told.

The library itself needs a GPU to load anything; that its names and signatures are as used here is
``test_tensorrt_names``'s, and ``test_gpu`` runs the real one.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koala_bundle.errors import BundleError, DeviceError
from koala_machine.tensorrt import make_logger
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.tensorrt import KernelCache, TensorRTEngine

PLAN = b"a serialized plan"


class Context:
    """``complaint`` is what the library reports when it refuses."""

    def __init__(self, refuses: str = "", complaint: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._refuses, self._complaint = refuses, complaint
        self.logger: Any = None

    def set_device_memory(self, memory: int, size: int) -> None:
        self.calls.append(("memory", memory, size))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.calls.append((name, memory))
        return name != self._refuses

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.calls.append(("run", stream_handle))
        if self._complaint:
            self.logger.log(Library.ILogger.ERROR, self._complaint)
        return self._refuses != "run"


class Cache:
    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, blob: bytes) -> bool:
        self.held = blob
        return blob.startswith(b"kernels")

    def serialize(self) -> bytes:
        return b"kernels for this GPU"


class Settings:
    strategy = graphs = cache = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class RtxSettings(Settings):
    cuda_graph_strategy = "WHOLE_GRAPH_CAPTURE"

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Library:
    """The part of ``tensorrt`` that loads plans; ``engine`` and ``context`` are None where it is to refuse."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self, settings: Settings, context: Context | None, complaint: str = "", loads: bool = True) -> None:
        self.settings, self.context, self._complaint, self._loads = settings, context, complaint, loads

    def Runtime(self, logger: Any) -> Any:
        def deserialize_cuda_engine(plan: Any) -> Any:
            assert bytes(plan) == PLAN
            if self.context is not None:
                self.context.logger = logger
            if self._complaint:
                logger.log(self.ILogger.ERROR, self._complaint)
            return self if self._loads else None

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    device_memory_size_v2 = 4096

    def create_runtime_config(self) -> Settings:
        return self.settings

    def create_execution_context(self, runtime_config: Settings) -> Context | None:
        assert runtime_config is self.settings
        return self.context


@pytest.fixture
def path(tmp_path: Path) -> Path:
    plan = tmp_path / "denoiser.plan"
    plan.write_bytes(PLAN)
    return plan


class Device:
    """``fault`` is the device's own error, which waiting for it shows."""

    has_pools = True

    def __init__(self, fault: DeviceError | None = None, capturing: bool = False) -> None:
        self.stream, self.capturing, self._fault = 55, capturing, fault

    def wait(self) -> None:
        assert not self.capturing
        if self._fault:
            raise self._fault


def load(path: Path, library: Library, device: Any = None) -> TensorRTEngine:
    return TensorRTEngine(library, path, device or Device(), KernelCache(path.with_suffix(".kernels")))


TENSORS = {"latents": Tensor(1024, "float32", (1,)), "next_latents": Tensor(2048, "float32", (1,))}


def test_a_run_sets_every_address_and_then_enqueues(path: Path) -> None:
    context, settings = Context(), Settings()
    plan = load(path, Library(settings, context))
    assert settings.strategy == "user managed"
    assert plan.activation_bytes == 4096
    run = plan.bind(TENSORS, 256)
    assert context.calls == [("memory", 256, 4096)], "set once, and not in a capture"
    assert run()
    assert plan.bind(TENSORS, 256)()
    once = [("latents", 1024), ("next_latents", 2048), ("run", 55)]
    assert context.calls == [("memory", 256, 4096), *once, *once]
    plan.save_kernel_cache()
    plan.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("refuses", ["next_latents", "run"])
def test_a_refusal_is_handed_on(path: Path, refuses: str) -> None:
    assert load(path, Library(Settings(), Context(refuses))).bind(TENSORS, 256)() is False


@pytest.mark.parametrize("capturing", [False, True])
def test_a_fault_of_the_gpu_is_not_a_bad_plan(path: Path, capturing: bool) -> None:
    """It is reported as such: by the device, which can be asked unless it captures, else by what the library says."""
    complaint = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)."
    plan = load(path, Library(Settings(), Context("run", complaint)), Device(capturing=capturing))
    told = "the GPU, in denoiser: expected success, found Error Code 1: Cuda Runtime .an illegal memory access"
    with pytest.raises(DeviceError, match=told):
        plan.bind(TENSORS, 256)()
    fault = DeviceError("the GPU, in a call", expected="success", found="a fault", fix="look")
    plan = load(path, Library(Settings(), Context("run", complaint)), Device(fault, capturing))
    with pytest.raises(DeviceError, match=told if capturing else "in a call: expected success, found a fault"):
        plan.bind(TENSORS, 256)()
    with pytest.raises(DeviceError, match=r"found Internal Error \(cudaError 500\)"):
        load(path, Library(Settings(), None, "Internal Error (cudaError 500)", loads=False))
    with pytest.raises(DeviceError, match="found a fault"):
        load(path, Library(Settings(), None, loads=False), Device(fault))


def test_one_logger_serves_the_process(path: Path) -> None:
    """TensorRT keeps the first that it is given, for ever. Each plan has the errors since it was loaded."""
    library = Library(Settings(), Context())
    (first, errors), (second, later) = make_logger(library), make_logger(library)
    assert first is second
    first.log(library.ILogger.ERROR, "a fault")
    assert errors == later == ["a fault"]
    _, none = make_logger(library)
    assert none == []


def test_compiled_kernels_are_kept_and_found(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    kept = path.with_suffix(".kernels")
    for damaged in (False, True):  # a cache that is not taken is compiled and written again
        if damaged:
            kept.write_bytes(b"something else")
        caplog.clear()
        settings = RtxSettings()
        plan = load(path, Library(settings, Context()))
        assert settings.cuda_graph_strategy == "disabled"
        assert "denoiser: compiling kernels for this GPU" in caplog.text
        assert kept.exists() == damaged
        plan.save_kernel_cache()
        assert KernelCache(kept).data == b"kernels for this GPU"
    caplog.clear()
    settings = RtxSettings()
    plan = load(path, Library(settings, Context()))
    assert settings.cache.held == b"kernels for this GPU"  # type: ignore[attr-defined]
    assert "compiling" not in caplog.text
    kept.unlink()
    plan.save_kernel_cache()
    assert not kept.exists(), "nothing new to keep"


def test_where_kernels_cannot_be_kept_is_only_told(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("koala_runtime.devices.tensorrt.write_atomic", refuse)
    kernels = KernelCache(path.with_suffix(".kernels"))
    device: Any = Device()
    TensorRTEngine(Library(RtxSettings(), Context()), path, device, kernels).save_kernel_cache()
    assert "cannot be kept: read-only file system" in caplog.text
    caplog.clear()
    caplog.set_level("INFO")
    settings = RtxSettings()
    TensorRTEngine(Library(settings, Context()), path, device, kernels).save_kernel_cache()
    assert settings.cache.held == b"kernels for this GPU", "this process keeps them over loads"  # type: ignore[attr-defined]
    assert caplog.text == ""


def test_kernels_that_later_runs_compile_are_kept_too(path: Path) -> None:
    settings = RtxSettings()
    plan = load(path, Library(settings, Context()))
    kept = path.with_suffix(".kernels")
    for compiled in (b"", b"kernels of one run", b"kernels of two runs"):
        settings.cache.serialize = lambda compiled=compiled: compiled  # type: ignore[attr-defined]
        plan.save_kernel_cache()
        assert KernelCache(kept).data == compiled


def test_what_the_library_refuses_is_one_sentence(path: Path) -> None:
    with pytest.raises(BundleError, match=r"plan: expected a plan for this GPU, found Serialization failed; build"):
        load(path, Library(Settings(), None, "Serialization failed.", loads=False))
    with pytest.raises(BundleError, match="found a refusal without a reason"):
        load(path, Library(Settings(), None))
    with pytest.raises(DeviceError, match="GPU memory for denoiser: expected 0 MB, found Out of memory; close what"):
        load(path, Library(Settings(), None, "Out of memory"))
