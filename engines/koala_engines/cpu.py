"""The ``cpu`` target: ONNX Runtime's optimised model, saved, in float32.

Optimisations that depend on the processor (memory layouts) are left to the moment of loading, where they cost
milliseconds; so these engines run on any machine with the same ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from koala_bundle.engine_record import EngineKey
from koala_bundle.errors import BuildError, KoalaError, first_line
from koala_bundle.files import require_space
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import CPU
from koala_engines.compiler import Examination
from koala_engines.kernels import of_graph
from koala_engines.weights import read_values

# Attributes whose value is a tensor element type.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "softmax_precision")
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside the model file


class CpuCompiler:
    """ONNX Runtime: plans for any processor."""

    target = CPU
    variant = ""

    def key(self) -> EngineKey:
        """Return what the plans depend on: neither a GPU nor an operating system."""
        choices = {"graph_optimization": "extended", "group_norm": "layer_norm"}
        return EngineKey(CPU.library, ort.__version__, "any", None, choices)

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Write ``folder/name.onnx`` and its weights; return both. Raises BuildError if ONNX Runtime refuses."""
        plan = folder / f"{name}.onnx"
        prepared = folder / f"{name}.prepared.onnx"
        session = ort.SessionOptions()
        session.log_severity_level = 3
        session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        session.optimized_model_filepath = str(plan)
        entries = "session.optimized_model_external_initializers_"
        session.add_session_config_entry(f"{entries}file_name", f"{plan.name}.data")
        session.add_session_config_entry(f"{entries}min_size_in_bytes", str(_EXTERNAL_FROM))
        weights = onnx_path.with_name(f"{onnx_path.name}.data").stat().st_size
        # Prepared, a float16 model has double its size; it is written twice: for ONNX Runtime to read, and by it.
        require_space(folder, weights * 4)
        try:
            prepare(onnx_path, prepared)
            progress(0.5)
            ort.InferenceSession(str(prepared), session, providers=["CPUExecutionProvider"])
        except (KoalaError, OSError):
            raise
        except Exception as error:  # ONNX Runtime's and onnx's exceptions share no base class of their own
            raise BuildError(
                f"{CPU}: {name}",
                expected="a graph that ONNX Runtime optimises and saves",
                found=first_line(error),
                fix="check the free disk space, or report the checkpoint's config.json",
            ) from error
        finally:
            for leftover in (prepared, Path(f"{prepared}.data")):
                leftover.unlink(missing_ok=True)
        progress(1.0)
        return [path for path in (plan, Path(f"{plan}.data")) if path.is_file()]

    def examine(self, plan: Path) -> Examination:
        """Count the operations by kind; ONNX Runtime does not show the scratch memory of a run."""
        return Examination(of_graph(plan), None)

    def losses(self, entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
        """Return nothing: one kernel per operation, in float32, is what this target is."""
        return []


def prepare(source: Path, result: Path) -> None:
    """Write the model ``source`` as ONNX Runtime's CPU kernels want it.

    Every float16 tensor becomes float32: exact, since each float16 is a float32. Group normalisation, which has no
    kernel there and would become a dozen operations, becomes layer normalisation of each group: the same formula.
    Weights are read and written one at a time.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    _normalise_groups_as_layers(graph)
    with Path(f"{result}.data").open("wb") as data:
        for tensor in graph.initializer:
            values = read_values(tensor, source.parent)
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


def _normalise_groups_as_layers(graph: onnx.GraphProto) -> None:
    """GroupNormalization of [B, C, ...] is LayerNormalization of [B, groups, the rest], then scale and bias of C."""
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    ones: set[int] = set()

    def constant(name: str, values: NDArray[Any]) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    for node in graph.node:
        shape = shapes.get(node.input[0])
        if node.op_type != "GroupNormalization" or not shape:
            nodes.append(node)
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        groups, stem = attributes["num_groups"], node.output[0]
        size = math.prod(shape[1:]) // groups
        if size not in ones:
            ones.add(size)
            constant(f"ones_{size}", np.ones(size, np.float32))
        split = constant(f"{stem}_split", np.array([shape[0], groups, size]))
        whole = constant(f"{stem}_whole", np.array(shape))
        column = constant(f"{stem}_column", np.array([shape[1], *[1] * (len(shape) - 2)]))
        make = onnx.helper.make_node
        epsilon = attributes.get("epsilon", 1e-5)  # the operator's default
        nodes += [
            make("Reshape", [node.input[0], split], [f"{stem}_groups"]),
            make("LayerNormalization", [f"{stem}_groups", f"ones_{size}"], [f"{stem}_normal"], epsilon=epsilon),
            make("Reshape", [f"{stem}_normal", whole], [f"{stem}_back"]),
            make("Reshape", [node.input[1], column], [f"{stem}_scale"]),
            make("Reshape", [node.input[2], column], [f"{stem}_bias"]),
            make("Mul", [f"{stem}_back", f"{stem}_scale"], [f"{stem}_scaled"]),
            make("Add", [f"{stem}_scaled", f"{stem}_bias"], [stem]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _point_to(tensor: TensorProto, values: NDArray[Any], location: str, offset: int) -> None:
    """Make ``tensor`` refer to ``values`` at ``offset`` of the file ``location``."""
    name = tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
