"""Loop-invariant code motion: what does not depend on the latents leaves the denoising loop.

The step's graph is cut in two. The *prologue* runs once per picture; it holds every node that depends on the prompt
alone, and every node that depends on the step but not on the latents, the latter for all steps at once. Reachability
alone decides which nodes these are; no layer is known by name. Nodes that only rearrange their input, and trivial
ones, stay with their consumers, so that few and small tensors cross the cut.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import IntEnum

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from koala_bundle.tensors import Component, IOTensor
from koala_export.graph import constant, shape_of
from koala_export.passes.base import Part, Pass, Result, same_interface, static_shapes
from koala_export.passes.batch_steps import batch_steps, can_batch

VIEWS = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Identity"}
"""Operations that rearrange their first input; TensorRT makes no kernel of most of them."""
PRODUCTS = {"MatMul", "Gemm", "Conv", "Attention", "Einsum"}
STEPS_AT_ONCE = 32
"""Rows that the prologue computes in one run: a step count above it runs it again. For the full-size U-Net 32 rows
cost 2 GFLOP, a thousandth of one step."""
_CARRIED = ("latents", "history", "noise", "mask", "kept", "coefficients", "input_scale")
"""What the loop carries, and what works on that alone."""
TRIVIAL = 4096  # elements: a value that no larger one and no product went into is not worth a tensor of its own


class Depends(IntEnum):
    """On what a value depends, each including those before it."""

    NOTHING = 0
    PICTURE = 1
    STEP = 2
    LATENTS = 3


@dataclass(frozen=True)
class Split:
    """``prologue`` gives the tensors ``cut``, which ``step`` takes; those in ``tables`` have a row per step."""

    prologue: ir.Model
    step: ir.Model
    cut: tuple[str, ...]
    tables: frozenset[str]


def hoist(
    model: ir.Model, *, latents: Collection[str], per_step: Collection[str], steps: int, trivial: int = TRIVIAL
) -> Split | None:
    """Split ``model``; None if nothing is worth moving out of the loop.

    ``latents`` and ``per_step`` name the inputs that the loop carries and those that change with the step; all others
    are the same for a whole picture. In the prologue, a ``per_step`` input or output of shape [...] has the shape
    [steps, ...]. Both results share the weights of ``model``, which is left unchanged.
    """
    step = model.clone()
    depends = _dependence(step.graph, latents, per_step)
    cut = _cut(step.graph, depends, trivial)
    if not cut:
        return None
    prologue = model.clone()
    tables = _become_prologue(prologue, [str(value.name) for value in cut], depends, steps)
    names = tuple(str(value.name) for value in cut)
    for value, name in zip(cut, names, strict=True):
        given = ir.Value(name=name, shape=value.shape, type=value.type)
        value.name = f"{name}_before"
        value.replace_all_uses_with(given)
        step.graph.inputs.append(given)
    _prune(step)
    return Split(prologue, step, names, tables)


def _dependence(graph: ir.Graph, latents: Collection[str], per_step: Collection[str]) -> dict[str, Depends]:
    depends = dict.fromkeys(graph.initializers, Depends.NOTHING)
    for value in graph.inputs:
        name = str(value.name)
        loop = Depends.LATENTS if name in latents else Depends.STEP if name in per_step else Depends.PICTURE
        depends.setdefault(name, loop)
    for node in graph:
        most = max((depends[str(value.name)] for value in _reads(node)), default=Depends.NOTHING)
        if most == Depends.STEP and not can_batch(node):
            most = Depends.LATENTS  # computed in each step
        if _draws(node):
            most = Depends.LATENTS
        for value in node.outputs:
            depends[str(value.name)] = most
    return depends


def _cut(graph: ir.Graph, depends: dict[str, Depends], trivial: int) -> list[ir.Value]:
    """Return the values that cross from the prologue into the step, in the order of the graph."""
    crossing: dict[str, ir.Value] = {}
    seen: set[str] = set()
    waiting = [v for node in graph for v in _reads(node) if _of(depends, *node.outputs) == Depends.LATENTS]
    waiting += list(graph.outputs)
    while waiting:
        value = waiting.pop()
        name, producer = str(value.name), value.producer()
        if name in seen or depends[name] in (Depends.NOTHING, Depends.LATENTS) or producer is None:
            continue
        seen.add(name)
        # A result of the step stays its own, even where it could be known before.
        if value.is_graph_output() or producer.op_type in VIEWS or not _worth_it(value, depends, trivial):
            waiting += _reads(producer)
        else:
            crossing[name] = value
    return [value for node in graph for value in node.outputs if value.name in crossing]


def _worth_it(value: ir.Value, depends: dict[str, Depends], trivial: int) -> bool:
    """Return whether computing ``value`` takes a product of matrices or touches more than a few elements."""
    waiting, seen = [value], set[int]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or id(node) in seen or depends[str(value.name)] == Depends.NOTHING:
            continue
        seen.add(id(node))
        if node.op_type in PRODUCTS or (node.op_type not in VIEWS and _elements(value) > trivial):
            return True
        waiting += _reads(node)
    return False


def _become_prologue(model: ir.Model, cut: list[str], depends: dict[str, Depends], steps: int) -> frozenset[str]:
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in cut)
    _prune(model)
    batched = {name for name, kind in depends.items() if kind == Depends.STEP}
    batch_steps(graph, batched, steps)
    return frozenset(batched & {*cut})


def _prune(model: ir.Model) -> None:
    """Drop nodes, weights and inputs that nothing needs."""
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    needed = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
    graph.inputs.clear()
    graph.inputs.extend(needed)


def _reads(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, those of its subgraphs' nodes included."""
    inner = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    own = [value for value in node.inputs if value is not None]
    for graph in inner:
        made = {id(value) for inside in graph for value in inside.outputs} | {id(value) for value in graph.inputs}
        own += [value for inside in graph for value in _reads(inside) if id(value) not in made]
    return own


def _draws(node: ir.Node) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")


def _of(depends: dict[str, Depends], *values: ir.Value) -> Depends:
    return max((depends[str(value.name)] for value in values), default=Depends.NOTHING)


def _elements(value: ir.Value) -> int:
    count = 1
    for side in value.shape or ():
        count *= side if isinstance(side, int) else 1
    return count


def pad_rows(prologue: ir.Model, component: Component) -> None:
    """Give the tables of ``prologue`` the padded rows that ``component`` declares."""
    graph = prologue.graph
    outside = {tensor.name: tensor for tensor in (*component.inputs, *component.outputs) if tensor.per_step}
    for value in list(graph.inputs):
        if tensor := outside.get(str(value.name)):
            items = math.prod(tensor.shape)
            row = ir.Value(name=tensor.name, type=value.type, shape=ir.Shape(component.graph_shape(tensor)))
            value.name = f"{tensor.name}_row"
            first = [
                constant(graph, [n], f"{tensor.name}_{word}") for word, n in (("from", 0), ("to", items), ("on", 1))
            ]
            cut = ir.node("Slice", [row, *first], name=f"{tensor.name}_items")
            shape = constant(graph, [component.steps, *tensor.shape], f"{tensor.name}_shape")
            shaped = ir.node("Reshape", [cut.outputs[0], shape], name=f"{tensor.name}_shaped")
            value.replace_all_uses_with(shaped.outputs[0])
            graph.inputs[graph.inputs.index(value)] = row
            graph.insert_before(graph[0], [cut, shaped])
    for index, value in enumerate(list(graph.outputs)):
        if tensor := outside.get(str(value.name)):
            items = math.prod(tensor.shape)
            value.name = f"{tensor.name}_items"
            flat = ir.node("Reshape", [value, constant(graph, [component.steps, items], f"{tensor.name}_flat")])
            graph.append(flat)
            row = flat.outputs[0]
            if missing := tensor.row_items - items:
                padding = constant(graph, [0, 0, 0, missing], f"{tensor.name}_padding")
                row.type, row.shape = value.type, ir.Shape((component.steps, items))
                padded = ir.node("Pad", [row, padding], name=f"{tensor.name}_padded")
                graph.append(padded)
                row = padded.outputs[0]
            row.name, row.type, row.shape = tensor.name, value.type, ir.Shape(component.graph_shape(tensor))
            graph.outputs[index] = row


def _run(part: Part) -> Result:
    """Split a component that runs in every step: one with inputs that change with the step."""
    component, model = part.component, part.model
    per_step = [tensor.name for tensor in component.inputs if tensor.per_step]
    split = hoist(model, latents=_CARRIED, per_step=per_step, steps=STEPS_AT_ONCE) if per_step else None
    if split is None:
        return Result((part,), None)
    values = {str(value.name): value for value in split.step.graph.inputs}
    known = {tensor.name: tensor for tensor in component.inputs}
    known |= {name: _tensor(values[name], per_step=name in split.tables) for name in split.cut}
    needed = [str(value.name) for value in split.prologue.graph.inputs]
    prologue = Component(
        "prologue", tuple(known[name] for name in needed), tuple(known[name] for name in split.cut), STEPS_AT_ONCE
    )
    pad_rows(split.prologue, prologue)
    step = replace(component, inputs=tuple(known[name] for name in values))
    nodes = model.graph.num_nodes()
    moved = nodes - split.step.graph.num_nodes()
    change = f"{moved} of {nodes} nodes left the loop, over {len(split.cut)} tensors"
    return Result((Part(prologue, split.prologue), Part(step, split.step)), change)


def _tensor(value: ir.Value, *, per_step: bool) -> IOTensor:
    assert value.dtype is not None
    return IOTensor(str(value.name), value.dtype.numpy().name, shape_of(value), per_step)


def _one_step(part: Part) -> bool:
    return part.component.steps == 0


def _prologue_without_latents(_: Part, parts: tuple[Part, ...]) -> bool:
    return all(tensor.name not in _CARRIED for part in parts[:-1] for tensor in part.component.inputs)


HOIST = Pass("hoist", _run, requires=(static_shapes, _one_step), ensures=(same_interface, _prologue_without_latents))
