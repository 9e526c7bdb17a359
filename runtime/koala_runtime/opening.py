"""From the chosen engines of a bundle to an executor: one function per kind of device."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from koala_bundle.checked import cache_folder
from koala_bundle.targets import CPU, CUDA, RTX, SIMULATED, TENSORRT
from koala_machine.driver import query_driver
from koala_machine.tensorrt import open_tensorrt
from koala_runtime.budget import budget, check_free
from koala_runtime.devices.base import Device, Engine
from koala_runtime.executor import Executor
from koala_runtime.selection import EngineSet

Loader: TypeAlias = Callable[[str], Engine]


def open_executor(engines: EngineSet, low_memory: bool = False) -> Executor:
    """Load the plans.

    Raises TargetError for plans of another version of the compiler, DeviceError if the GPU has too little memory.
    """
    device, load = _OPENERS[engines.target.name](engines, low_memory)
    try:
        with device.current():
            check_free(budget(engines.manifest, engines.record), device.free_bytes(), low_memory=low_memory)
    except BaseException:
        device.close()
        raise
    return Executor(device, load, engines.components, engines.target.half, low_memory)


def _cpu(engines: EngineSet, _: bool) -> tuple[Device, Loader]:
    from koala_runtime.devices.cpu import VERSION, CpuDevice, OrtEngine

    engines.check_version(VERSION)
    return CpuDevice(), lambda name: OrtEngine(engines.plan(name))


def _simulated(engines: EngineSet, _: bool) -> tuple[Device, Loader]:
    from koala_runtime.devices.cpu import VERSION
    from koala_runtime.devices.simulated import SimulatedDevice, SimulatedEngine

    engines.check_version(VERSION)
    device = SimulatedDevice()
    weights = budget(engines.manifest, engines.record).weights
    scratch = {entry.name: sum(tensor.nbytes for tensor in entry.outputs) for entry in engines.manifest.components}
    return device, lambda name: SimulatedEngine(device, name, engines.plan(name), weights[name], scratch[name])


def _cuda(engines: EngineSet, _: bool) -> tuple[Device, Loader]:
    from koala_runtime.devices.onnx_cuda import UncapturedCudaDevice, load_on_gpu

    device, index = UncapturedCudaDevice(engines.device or 0), query_driver(device=engines.device or 0).ordinal
    return device, lambda name: load_on_gpu(engines.plan(name), device, index)


def _gpu(engines: EngineSet, low_memory: bool) -> tuple[Device, Loader]:
    from koala_runtime.devices.cuda import CudaDevice
    from koala_runtime.devices.tensorrt import KernelCache, TensorRTEngine

    module = open_tensorrt(engines.target)
    engines.check_version(str(module.__version__))
    device = CudaDevice(engines.device or 0)
    # The cache holds for one version of the library on one model of GPU.
    suffix = re.sub(r"\W+", "-", f"{engines.record.key.compiler_version} {device.gpu}").strip("-")

    caches = {name: KernelCache(_kernel_folder(engines) / f"{name}-{suffix}.kernels") for name in engines.components}

    def load(name: str) -> Engine:
        return TensorRTEngine(module, engines.plan(name), device, caches[name], parks=low_memory)

    return device, load


def _kernel_folder(engines: EngineSet) -> Path:
    """Return where compiled kernels are kept: beside the plans or, of a signed bundle, in the user's cache folder.

    Kernels are code that no signature covers.
    """
    if not engines.is_signed:
        return engines.folder
    return cache_folder() / "kernels" / engines.digest[:32] / engines.folder.name


_OPENERS: dict[str, Callable[[EngineSet, bool], tuple[Device, Loader]]] = {
    CPU.name: _cpu,
    CUDA.name: _cuda,
    RTX.name: _gpu,
    TENSORRT.name: _gpu,
    SIMULATED.name: _simulated,
}
