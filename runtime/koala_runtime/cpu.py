"""The ``cpu`` executor: plans are ONNX Runtime models in float32, buffers are numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from koala_runtime.contract.errors import BundleError
from koala_runtime.contract.io import IOTensor
from koala_runtime.contract.manifest import EngineRecord
from koala_runtime.stages import Array, Buffer, Stage

VERSION: str = ort.__version__


class HostBuffer:
    """A numpy array whose memory stays where it is."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def write(self, values: Array) -> None:
        """Copy ``values`` in."""
        if values.shape != self.array.shape or values.dtype != self.array.dtype:
            raise ValueError(f"buffer {self.array.dtype}{self.array.shape}, values {values.dtype}{values.shape}")
        np.copyto(self.array, values)

    def read(self) -> Array:
        """Return a copy."""
        return self.array.copy()

    def row(self, index: int) -> HostBuffer:
        """Return one tensor of a table, sharing its memory."""
        return HostBuffer(self.array[index])


class CpuExecutor:
    """One ONNX Runtime session per component."""

    def __init__(self, folder: Path, record: EngineRecord) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        for name, plan in record.plans.items():
            try:
                self._sessions[name] = ort.InferenceSession(
                    str(folder / plan.files[0]), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
                raise BundleError(
                    str(folder / plan.files[0]),
                    expected=f"a plan that ONNX Runtime {VERSION} loads",
                    found=str(error).splitlines()[0],
                    mend="build the engines again with `koala engines BUNDLE --target cpu`",
                ) from error

    def allocate(self, tensor: IOTensor, rows: int | None = None) -> HostBuffer:
        """Return zeroed memory. Half precision does not exist on this target: such tensors are float32."""
        dtype = "float32" if tensor.dtype == "float16" else tensor.dtype
        return HostBuffer(np.zeros((*(() if rows is None else (rows,)), *tensor.shape), dtype))

    def bind(self, component: str, tensors: Mapping[str, Buffer]) -> Stage:
        """Bind every input and output of ``component`` to the memory of the buffer of its name."""
        session = self._sessions[component]
        binding = session.io_binding()
        arrays = []
        for tensor, bind in (
            *((tensor, binding.bind_input) for tensor in session.get_inputs()),
            *((tensor, binding.bind_output) for tensor in session.get_outputs()),
        ):
            array = cast("HostBuffer", tensors[tensor.name]).array
            bind(tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            arrays.append(array)

        def run(_alive: list[Array] = arrays) -> None:
            session.run_with_iobinding(binding)

        return run

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()
