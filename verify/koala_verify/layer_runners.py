"""The two sides of a comparison by layer, as Polygraphy's runners: PyTorch, and a target that computes the ONNX graph.

A target's plans do not give what is inside them. So the target is given the ONNX graph with the wanted tensors as its
outputs, and compiles that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import polygraphy.config
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnx import modify_outputs
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from koala_bundle.targets import RTX, Target
from koala_export.gate import Array
from koala_verify.torch_values import TorchValues

REFERENCE = "pytorch"
_PROVIDERS = {True: "CUDAExecutionProvider", False: "CPUExecutionProvider"}  # by whether the target needs a GPU


class TorchRunner(BaseRunner):  # type: ignore[misc]
    """Gives the values called ``names``. It has inputs of its own, and takes none."""

    def __init__(self, values: TorchValues, names: Sequence[str]) -> None:
        super().__init__(name=REFERENCE)
        self._values, self._names = values, names

    def get_input_metadata_impl(self) -> Any:
        """Return nothing."""
        return TensorMetadata()

    def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
        """Compute in float32."""
        started = time.perf_counter()
        values = self._values.compute(self._names)
        self.inference_time = time.perf_counter() - started
        return values


def open_runner(target: Target, path: Path, names: Sequence[str]) -> Any:
    """Return a runner that computes the tensors called ``names`` of the ONNX file ``path``.

    ONNX Runtime runs the file as it is, also for ``cpu``, whose plans would be in float32. TensorRT needs a GPU.
    """
    if target.library == "onnxruntime":
        return OnnxrtRunner(lambda: _session(target, path, names), name=str(target))
    return _tensorrt(target, path, names)


def _session(target: Target, path: Path, names: Sequence[str]) -> Any:
    """Open a session on the graph with other outputs; the weights stay in their file."""
    model = modify_outputs(onnx.load(path, load_external_data=False), outputs=[*names])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return ort.InferenceSession(model.SerializeToString(), options, providers=[_PROVIDERS[target.needs_gpu]])


def _tensorrt(target: Target, path: Path, names: Sequence[str]) -> Any:
    network = marked_network(target, path, names)
    from polygraphy.backend.trt import EngineFromNetwork, TrtRunner

    return TrtRunner(EngineFromNetwork(network), name=str(target))


def marked_network(target: Target, path: Path, names: Sequence[str]) -> Any:
    """Return what parses an ONNX file to a network of ``target`` with other outputs; called, it gives the network."""
    polygraphy.config.USE_TENSORRT_RTX = target == RTX  # read when the next line imports the library
    from polygraphy.backend.trt import ModifyNetworkOutputs, NetworkFromOnnxPath

    return ModifyNetworkOutputs(NetworkFromOnnxPath(str(path)), outputs=[*names])
