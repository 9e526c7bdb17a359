"""Small helpers for onnx_ir graphs."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

Shape = tuple[int, ...]
_UNUSED = {"is_causal", "softcap", "qk_matmul_output_mode"}  # 0 in what torch exports without a mask


def constant(graph: ir.Graph, values: list[int], name: str) -> ir.Value:
    """Add a list of integers to the graph, int64 [len(values)]."""
    tensor = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def scalar(graph: ir.Graph, number: float, like: ir.Value, name: str) -> ir.Value:
    """Add one number of the dtype of ``like`` to the graph."""
    assert like.dtype is not None
    tensor = ir.tensor(np.array(number, like.dtype.numpy()), name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=like.type, const_value=tensor)
    graph.register_initializer(value)
    return value


def is_plain_attention(node: ir.Node) -> bool:
    """Return whether it is an Attention of three tensors [batch, heads, tokens, width] and nothing else."""
    if node.op_type != "Attention" or len(node.inputs) != 3:
        return False
    off = all(not attribute.value for name, attribute in node.attributes.items() if name in _UNUSED)
    known = set(node.attributes) <= _UNUSED | {"scale"}
    return off and known and all(len(shape_of(value)) == 4 for value in node.inputs)


def attention_scale(node: ir.Node) -> float:
    """Return the factor of an Attention's scores; by default one over the root of the width."""
    given = node.attributes.get("scale")
    return 1 / math.sqrt(shape_of(node.inputs[0])[-1]) if given is None else given.as_float()


class Replacement:
    """The nodes that replace one, created in order; their results have its dtype."""

    def __init__(self, node: ir.Node) -> None:
        self.name, self.type = str(node.outputs[0].name), node.outputs[0].type
        self.nodes: list[ir.Node] = []

    def add(
        self,
        op_type: str,
        inputs: list[ir.Value],
        label: str,
        shape: Shape,
        **attributes: str | int | list[int],
    ) -> ir.Value:
        """Make a node and return its result."""
        name = f"{self.name}_{label}"
        self.nodes.append(ir.node(op_type, inputs, attributes, name=name))
        result = self.nodes[-1].outputs[0]
        result.name, result.type, result.shape = name, self.type, ir.Shape(shape)
        return result


def shape_of(value: ir.Value | None) -> Shape:
    """Return the static shape of a value."""
    assert value is not None and value.shape is not None
    return tuple(int(side) for side in value.shape)  # type: ignore[arg-type]
