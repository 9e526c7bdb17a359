"""The ``cpu`` target: ONNX Runtime's optimised model, saved, in float32.

Optimisations that depend on the processor (memory layouts) are left to the moment of loading, where they cost
milliseconds; so these engines run on any machine with the same ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from koala_engines.kernels import of_graph
from koala_engines.options import Options
from koala_runtime.contract.errors import BuildError
from koala_runtime.contract.files import require_space
from koala_runtime.contract.manifest import EngineKey, Manifest

# Attributes whose value is a tensor element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside the model file


def engine_key(target: str, manifest: Manifest, options: Options) -> EngineKey:
    """What these engines depend on: neither a GPU nor an operating system."""
    return EngineKey(
        "onnxruntime", ort.__version__, "any", None, {"graph_optimization": "extended"}, manifest.onnx_digests()
    )


def build_plan(
    target: str, name: str, onnx_path: Path, folder: Path, options: Options, progress: Callable[[float], None]
) -> list[Path]:
    """Write ``folder/name.onnx`` and its weights; return both. Raises BuildError if ONNX Runtime refuses."""
    plan = folder / f"{name}.onnx"
    widened = folder / f"{name}.fp32.onnx"
    session = ort.SessionOptions()
    session.log_severity_level = 3
    session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session.optimized_model_filepath = str(plan)
    entries = "session.optimized_model_external_initializers_"
    session.add_session_config_entry(f"{entries}file_name", f"{plan.name}.data")
    session.add_session_config_entry(f"{entries}min_size_in_bytes", str(_EXTERNAL_FROM))
    weights = onnx_path.with_name(f"{onnx_path.name}.data").stat().st_size
    model = onnx.load(onnx_path, load_external_data=False)
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    # Widened, a float16 model is written twice at double its size: once for ONNX Runtime to read, once by it.
    require_space(folder, weights * (4 if half else 1))
    source = onnx_path
    if half:
        source = widened
        widen(onnx_path, widened)
    progress(0.5)
    try:
        ort.InferenceSession(str(source), session, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BuildError(
            f"cpu: {name}",
            expected="a graph that ONNX Runtime optimises and saves",
            found=str(error).splitlines()[0],
            mend="check the free disk space, or report the checkpoint's config.json",
        ) from error
    finally:
        for leftover in (widened, Path(f"{widened}.data")):
            leftover.unlink(missing_ok=True)
    progress(1.0)
    return [path for path in (plan, Path(f"{plan}.data")) if path.is_file()]


def kernels(target: str, plan: Path) -> dict[str, int]:
    """Return the operations of a plan by kind."""
    return of_graph(plan)


def widen(source: Path, result: Path) -> None:
    """Write the model ``source`` with every float16 tensor as float32; exact, since each float16 is a float32.

    Weights are read and written one at a time.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    with Path(f"{result}.data").open("wb") as data:
        for tensor in graph.initializer:
            values = onnx.numpy_helper.to_array(tensor, str(source.parent))
            if values.dtype == np.float16:
                values = values.astype(np.float32)
            if values.nbytes < _EXTERNAL_FROM:  # shape arithmetic must be readable without the data file
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            else:
                _point_to(tensor, values, f"{result.name}.data", data.tell())
                data.write(values.tobytes())
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
    del graph.value_info[:]  # inferred types that no longer hold; ONNX Runtime infers its own
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, result)


def _point_to(tensor: TensorProto, values: NDArray[Any], location: str, offset: int) -> None:
    """Make ``tensor`` refer to ``values`` at ``offset`` of the file ``location``."""
    name = tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
