"""Hoisting over random graphs: the result stays, nothing that depends on the latents moves, worthwhile work does."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from koala_export.graph import shape_of
from koala_export.passes.hoist import Split, hoist

STEPS = 3
INPUTS = {
    "latents": (2, 4),
    "other_latents": (4,),
    "timestep": (1,),
    "sigma": (2, 1),
    "prompt": (2, 4),
    "sizes": (4, 4),
}
LATENTS, PER_STEP = ("latents", "other_latents"), ("timestep", "sigma")

Feeds = dict[str, NDArray[np.float32]]


class Builder:
    """A graph that grows by one random operation at a time; shapes are small, and always known."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.inputs = [self.value(name, shape) for name, shape in INPUTS.items()]
        self.values, self.nodes, self.constants = [*self.inputs], list[ir.Node](), list[ir.Value]()

    def value(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def constant(self, array: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(array, name=f"constant_{len(self.constants)}")
        made = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.constants.append(made)
        return made

    def integers(self, *values: int) -> ir.Value:
        return self.constant(np.array(values, np.int64))

    def weight(self, *shape: int) -> ir.Value:
        return self.constant(np.random.default_rng(len(self.constants)).uniform(-1, 1, shape).astype(np.float32))

    def add(self, op_type: str, inputs: list[ir.Value], shape: tuple[int, ...], **attributes: Any) -> None:
        name = f"value_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes or None, name=f"node_{len(self.nodes)}")
        node.outputs[0].name, node.outputs[0].shape = name, ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.nodes.append(node)
        self.values.append(node.outputs[0])

    def grow(self) -> None:
        one: ir.Value = self.rng.choice(self.values)
        shape = shape_of(one)
        kinds = ["unary", "binary", "reshape", "unsqueeze", "expand", "concat", "softmax", "cumsum"]
        kinds += ["transpose", "matmul", "slice"] if len(shape) > 1 else []
        kinds += ["gemm"] if len(shape) == 2 else []
        getattr(self, f"grow_{self.rng.choice(kinds)}")(one, shape)

    def grow_unary(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        self.add(self.rng.choice(["Sin", "Sigmoid", "Tanh", "Neg"]), [one], shape)

    def grow_binary(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        fitting = [v for v in self.values if broadcast(shape, tuple(v.shape or ())) is not None]
        other = self.rng.choice(fitting)
        self.add(self.rng.choice(["Add", "Mul", "Sub"]), [one, other], broadcast(shape, other.shape) or ())

    def grow_reshape(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        flat = (int(np.prod(shape)),)
        self.add("Reshape", [one, self.integers(*flat)], flat)

    def grow_unsqueeze(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        if len(shape) < 4:
            axis = self.rng.randint(0, len(shape))
            self.add("Unsqueeze", [one, self.integers(axis)], (*shape[:axis], 1, *shape[axis:]))

    def grow_expand(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        if np.prod(shape) <= 32 and len(shape) < 4:
            self.add("Expand", [one, self.integers(2, *shape)], (2, *shape))

    def grow_concat(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        same = [v for v in self.values if tuple(v.shape or ()) == shape]
        axis = self.rng.randint(-len(shape), len(shape) - 1)
        sides = [*shape]
        sides[axis] *= 2
        if sides[axis] <= 16:
            self.add("Concat", [one, self.rng.choice(same)], tuple(sides), axis=axis)

    def grow_softmax(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        self.add("Softmax", [one], shape, axis=-1)

    def grow_cumsum(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        self.add("CumSum", [one, self.constant(np.array(0, np.int64))], shape)

    def grow_transpose(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        order = self.rng.sample(range(len(shape)), len(shape))
        self.add("Transpose", [one], tuple(shape[axis] for axis in order), perm=order)

    def grow_slice(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        axis = self.rng.randint(0, len(shape) - 1)
        if shape[axis] > 1:
            given = [one, self.integers(1), self.integers(shape[axis]), self.integers(axis)]
            self.add("Slice", given, (*shape[:axis], shape[axis] - 1, *shape[axis + 1 :]))

    def grow_matmul(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        others = [v for v in self.values if len(shape_of(v)) >= 2 and shape_of(v)[-2] == shape[-1]]
        others = [v for v in others if broadcast(shape[:-2], tuple(v.shape or ())[:-2]) is not None]
        other = self.rng.choice([*others, self.weight(shape[-1], 3)])
        sides = tuple(int(side) for side in other.shape)
        self.add("MatMul", [one, other], (*(broadcast(shape[:-2], sides[:-2]) or ()), shape[-2], sides[-1]))

    def grow_gemm(self, one: ir.Value, shape: tuple[int, ...]) -> None:
        self.add("Gemm", [one, self.weight(5, shape[1]), self.weight(5)], (shape[0], 5), transB=1)


def broadcast(one: Any, other: Any) -> tuple[int, ...] | None:
    try:
        return tuple(np.broadcast_shapes(tuple(one), tuple(other)))
    except ValueError:
        return None


def random_model(seed: int, nodes: int) -> ir.Model:
    """Return a model of ``nodes`` operations or a few less; what nothing reads is a result."""
    builder = Builder(Random(seed))
    builder.grow_unary(builder.inputs[0], INPUTS["latents"])
    for _ in range(nodes):
        builder.grow()
    outputs = [value for value in builder.values if value.producer() is not None and not value.uses()]
    used = [value for value in builder.inputs if value.uses()]
    graph = ir.Graph(used, outputs, nodes=builder.nodes, initializers=builder.constants, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, feeds: Feeds) -> Feeds:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def feeds_of(step: int) -> Feeds:
    rng, shared = np.random.default_rng(step), np.random.default_rng(99)
    return {
        n: (shared if n in ("prompt", "sizes") else rng).uniform(-1, 1, s).astype(np.float32) for n, s in INPUTS.items()
    }


def assert_same(model: ir.Model, split: Split) -> None:
    each = [feeds_of(step) for step in range(STEPS)]
    together = {
        name: np.stack([feeds[name] for feeds in each]) if name in PER_STEP else each[0][name] for name in INPUTS
    }
    known = run(split.prologue, together)
    assert {*known} == {*split.cut}
    for step, feeds in enumerate(each):
        rows = {name: value[step] if name in split.tables else value for name, value in known.items()}
        got, wanted = run(split.step, feeds | rows), run(model, feeds)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trivial", [0, 4096])
@given(seed=st.integers(0, 2**32), nodes=st.integers(10, 60))
@settings(max_examples=150, deadline=None)
def test_hoisting_never_changes_a_result(trivial: int, seed: int, nodes: int) -> None:
    model = random_model(seed, nodes)
    before = ir.serde.serialize_model(model).SerializeToString()
    split = hoist(model, latents=LATENTS, per_step=PER_STEP, steps=STEPS, trivial=trivial)
    assert ir.serde.serialize_model(model).SerializeToString() == before
    if split is not None:
        assert not {*LATENTS} & {value.name for value in split.prologue.graph.inputs}
        assert_same(model, split)
