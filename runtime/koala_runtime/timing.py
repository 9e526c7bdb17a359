"""How long a run of one plan takes: for `koala engines --tune`, which keeps the fastest of several builds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import Target
from koala_bundle.tensors import ITEM_BYTES
from koala_machine.tensorrt import open_tensorrt
from koala_runtime.devices.base import Array, Device, Engine, Tensor

_WARM_UP, _RUNS = 3, 20


def time_plan(target: Target, entry: ComponentEntry, plan: Path, device: int | str = 0) -> float:
    """Return the median seconds of a run of a GPU target's plan on the GPU ``device``; a ``koala_engines`` Measure.

    Raises TargetError without a GPU or the library, DeviceError if the GPU fails.
    """
    from koala_runtime.devices.cuda import CudaDevice
    from koala_runtime.devices.tensorrt import KernelCache, TensorRTEngine

    module, gpu = open_tensorrt(target), CudaDevice(device)
    try:
        kernels = KernelCache(plan.with_suffix(".kernels"))
        return seconds_of_a_run(gpu, lambda: TensorRTEngine(module, plan, gpu, kernels), entry, target.half)
    finally:
        gpu.close()


def seconds_of_a_run(device: Device, load: Callable[[], Engine], entry: ComponentEntry, half: str) -> float:
    """Load a plan, run it on noise and return the median seconds of a run by the device's clock.

    ``half`` is the dtype in which the device holds float16 tensors. Raises DeviceError.
    """
    with device.current():
        engine, held = load(), list[int]()
        try:
            tensors = {}
            for tensor in (*entry.inputs, *entry.outputs):
                dtype = half if tensor.dtype == "float16" else tensor.dtype
                shape = entry.graph_shape(tensor)
                held.append(device.allocate(math.prod(shape) * ITEM_BYTES[dtype]))
                tensors[tensor.name] = Tensor(held[-1], dtype, shape)
            for tensor in entry.inputs:
                _write(device, tensors[tensor.name])
            held.append(device.allocate(max(engine.activation_bytes, 1)))
            run = engine.bind(tensors, held[-1])

            def enqueue() -> None:
                run()

            device.time([enqueue] * _WARM_UP)
            return median(device.time([enqueue] * _RUNS))
        finally:
            device.wait()
            engine.close()
            for address in held:
                device.release(address)


def _write(device: Device, tensor: Tensor) -> None:
    """Fill an input: noise where it is real, since zeros would take less power and so less time; else zeros."""
    values: Array = np.zeros(tensor.shape, tensor.dtype)
    if values.dtype.kind == "f":
        values = np.random.default_rng(0).standard_normal(tensor.shape).astype(tensor.dtype)
    pinned = device.pin(values.nbytes)
    try:
        pinned[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        device.copy_in(tensor.address, pinned)
        device.wait()
    finally:
        device.unpin(pinned)
