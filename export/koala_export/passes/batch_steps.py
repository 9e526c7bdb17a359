"""Batching of steps: a graph for one step becomes one for all steps at once, with a leading axis of steps.

Each operation has a rule for how it takes that axis; shapes are static. What has no rule is not batched. In the rules
"batched" tensors have the axis, and others are the same for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx_ir as ir

from koala_export.graph import constant, shape_of

UNARY = {"Abs", "Cast", "Cos", "Erf", "Exp", "Gelu", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid"}
UNARY |= {"Sin", "Sqrt", "Swish", "Tanh"}
BINARY = {"Add", "Div", "Mul", "Pow", "Sub", "Max", "Min", "Where"}
"""Operations on elements with numpy's broadcasting, of any number of inputs."""


def can_batch(node: ir.Node) -> bool:
    """Return whether ``batch_steps`` has a rule for ``node``, and the shapes that the rule needs."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    static = all(value.shape is not None and value.shape.is_static() for value in values)
    return node.domain == "" and static and node.op_type in _RULES and _RULES[node.op_type][0](node)


def batch_steps(graph: ir.Graph, batched: Collection[str], steps: int) -> None:
    """Give every value named in ``batched`` a leading axis of ``steps``, graph inputs and outputs included."""
    for value in graph.inputs:
        if value.name in batched:
            value.shape = ir.Shape((steps, *shape_of(value)))
    for node in list(graph):
        if not any(value.name in batched for value in node.outputs):
            continue
        shapes = [(steps, *shape_of(value)) for value in node.outputs]
        batching = _Batching(graph, node, batched, steps)
        replacement = _RULES[node.op_type][1](batching)
        if replacement is not None:
            old = node.outputs[0]
            replacement.name, replacement.type = str(old.name), old.type
            old.name = f"{old.name}_before"
            old.replace_all_uses_with(replacement, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        for value, shape in zip([replacement] if replacement else node.outputs, shapes, strict=True):
            value.shape = ir.Shape(shape)


class _Batching:
    """A node that is being batched: helpers to insert what it needs before it."""

    def __init__(self, graph: ir.Graph, node: ir.Node, batched: Collection[str], steps: int) -> None:
        self.graph, self.node, self.steps = graph, node, steps
        self.is_batched = [value is not None and value.name in batched for value in node.inputs]
        self.rank = len(shape_of(node.outputs[0]))  # before batching

    def set(self, index: int, value: ir.Value) -> None:
        self.node.replace_input_with(index, value)

    def constant(self, values: list[int], name: str) -> ir.Value:
        return constant(self.graph, values, f"{self.node.outputs[0].name}_{name}")

    def before(self, op_type: str, value: ir.Value, shape: list[int], index: int) -> ir.Value:
        """Insert Reshape or Expand to ``shape`` on input ``index``."""
        name = f"{op_type.lower()}_{index}"
        target = self.constant(shape, f"{name}_shape")
        node = ir.node(op_type, [value, target], name=f"{self.node.outputs[0].name}_{name}")
        result = node.outputs[0]
        result.name, result.type, result.shape = node.name, value.type, ir.Shape(shape)
        self.graph.insert_before(self.node, node)
        return result

    def align(self, index: int, missing: int) -> None:
        """Insert ``missing`` sides of one after the axis of steps of input ``index``, for broadcasting."""
        value = self.node.inputs[index]
        steps, *sides = shape_of(value)
        if value is not None and missing > 0:
            self.set(index, self.before("Reshape", value, [steps, *[1] * missing, *sides], index))

    def inputs(self) -> list[tuple[int, ir.Value]]:
        return [(index, value) for index, value in enumerate(self.node.inputs) if value is not None]

    def attribute(self, name: str, default: int) -> int:
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()


def _elementwise(batching: _Batching) -> None:
    for index, value in batching.inputs():
        if batching.is_batched[index]:
            batching.align(index, batching.rank + 1 - len(shape_of(value)))


def _gemm(batching: _Batching) -> ir.Value:
    """Steps and rows become one axis for the product, and two again after it."""
    node, value = batching.node, batching.node.inputs[0]
    assert value is not None
    steps, rows, width = shape_of(value)
    columns = shape_of(node.outputs[0])[1]
    flat = batching.before("Reshape", value, [steps * rows, width], 0)
    product = ir.node("Gemm", [flat, *node.inputs[1:]], name=f"{node.name}_flat")
    product.attributes.update(node.attributes)
    output = product.outputs[0]
    output.name, output.type, output.shape = f"{node.name}_flat", value.type, ir.Shape((steps * rows, columns))
    batching.graph.insert_before(node, product)
    return batching.before("Reshape", output, [steps, rows, columns], 1)


def _matmul(batching: _Batching) -> None:
    """Leading axes broadcast; the ranks of the batch axes are aligned as for elementwise operations."""
    ranks = [len(shape_of(value)) - batching.is_batched[index] for index, value in batching.inputs()]
    for index, _ in batching.inputs():
        if batching.is_batched[index]:
            batching.align(index, max(ranks) - ranks[index])


def _concat(batching: _Batching) -> None:
    axis = batching.attribute("axis", 0)
    batching.node.attributes["axis"] = ir.AttrInt64("axis", axis if axis < 0 else axis + 1)
    for index, value in batching.inputs():
        if not batching.is_batched[index]:
            batching.set(index, batching.before("Expand", value, [batching.steps, *shape_of(value)], index))


def _to_own_shape(batching: _Batching) -> ir.Value:
    """Reshape, Unsqueeze, Squeeze, Flatten: the same elements in the output's shape."""
    value = batching.node.inputs[0]
    assert value is not None
    return batching.before("Reshape", value, [batching.steps, *shape_of(batching.node.outputs[0])], 0)


def _expand(batching: _Batching) -> None:
    target = [batching.steps, *shape_of(batching.node.outputs[0])]
    batching.align(0, len(target) - len(shape_of(batching.node.inputs[0])))
    batching.set(1, batching.constant(target, "batched_shape"))


def _transpose(batching: _Batching) -> None:
    found = batching.node.attributes.get("perm")
    order = list(range(batching.rank))[::-1] if found is None else list(found.as_ints())
    batching.node.attributes["perm"] = ir.AttrInt64s("perm", [0, *(axis + 1 for axis in order)])


def _slice(batching: _Batching) -> None:
    axes = _constant(batching.node.inputs[3])
    assert axes is not None
    batching.set(3, batching.constant([axis if axis < 0 else axis + 1 for axis in axes], "batched_axes"))


def _always(node: ir.Node) -> bool:
    return True


def _plain_gemm(node: ir.Node) -> bool:
    transposed = node.attributes.get("transA")
    weights = all(value is None or value.const_value is not None for value in node.inputs[1:])
    return weights and (transposed is None or transposed.as_int() == 0)


def _first_of(node: ir.Node) -> bool:
    return all(value is None or _constant(value) is not None for value in node.inputs[1:])


def _with_axes(node: ir.Node) -> bool:
    return len(node.inputs) > 3 and _first_of(node)


def _matrices(node: ir.Node) -> bool:
    return all(value is not None and len(shape_of(value)) >= 2 for value in node.inputs)


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(item) for item in tensor.numpy().ravel()]


_RULES: dict[str, tuple[Callable[[ir.Node], bool], Callable[[_Batching], ir.Value | None]]] = {
    **dict.fromkeys((*UNARY, *BINARY), (_always, _elementwise)),
    **dict.fromkeys(("Reshape", "Unsqueeze", "Squeeze", "Flatten"), (_first_of, _to_own_shape)),
    "Concat": (_always, _concat),
    "Expand": (_first_of, _expand),
    "Gemm": (_plain_gemm, _gemm),
    "MatMul": (_matrices, _matmul),
    "Slice": (_with_axes, _slice),
    "Transpose": (_always, _transpose),
}
"""By operation: whether a node can be batched, and how: in place, or by the value that replaces its output."""
