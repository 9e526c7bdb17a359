"""The ``cpu`` executor: plans are ONNX Runtime models in float32, buffers are numpy arrays."""

from __future__ import annotations

import math
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
    """A numpy array whose memory stays where it is; of a table, [rows, padded items], with ``shape`` that of a row."""

    def __init__(self, array: Array, shape: tuple[int, ...] | None = None) -> None:
        self.array, self._shape = array, shape

    def write(self, values: Array) -> None:
        """Copy ``values`` in."""
        shape = self.array.shape if self._shape is None else (len(values), *self._shape)
        if values.shape != shape or values.dtype != self.array.dtype:
            raise ValueError(f"buffer {self.array.dtype}{shape}, values {values.dtype}{values.shape}")
        if self._shape is None:
            np.copyto(self.array, values)
        else:
            self.array[: len(values), : math.prod(self._shape)] = values.reshape(len(values), -1)

    def read(self) -> Array:
        """Return a copy."""
        return self.array.copy()

    def row(self, index: int) -> HostBuffer:
        """Return one tensor of a table, sharing its memory."""
        assert self._shape is not None
        return HostBuffer(self.array[index, : math.prod(self._shape)].reshape(self._shape))

    def rows(self, start: int, count: int) -> HostBuffer:
        """Return rows of a table as they are, sharing their memory."""
        return HostBuffer(self.array[start : start + count])


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
        if rows is None:
            return HostBuffer(np.zeros(tensor.shape, dtype))
        return HostBuffer(np.zeros((rows, tensor.row_items), dtype), tensor.shape)

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
