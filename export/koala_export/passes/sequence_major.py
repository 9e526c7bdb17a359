"""Tokens in sequence-major order, [S, B, C] and not [B, S, C], between attentions and around them.

TensorRT's fused attention takes the heads of all pictures as matrices [S, D] at one distance from each other. With
guidance a batch has two pictures, and their heads lie at one distance only where the sequence is the outermost axis:
[S, B, C] is [S, B x H, D] as it stands. In batch-major order TensorRT-RTX 1.7 rearranges the inputs and outputs of
attentions: 48 of the 228 kernels of a KOALA-700M step. (CLIP's masked attentions do not gain by this:
89 kernels became 100, so they are left alone.)

Operations on single tokens do not depend on the order of tokens. So they are converted together with the attentions, up
to where tokens come from or go to other operations; a Transpose is inserted there. An attention becomes its definition,
softmax(q k) v, on three axes, as products that name their axes: nothing is left in it to rearrange.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from koala_export.graph import Replacement, attention_scale, constant, is_plain_attention, scalar, shape_of
from koala_export.passes.base import Part, Pass, Result, same_interface, static_shapes

_BY_TOKEN = {"Add", "Sub", "Mul", "Div", "Gelu", "Erf", "Sigmoid", "Swish", "Relu", "Tanh", "Cast", "Identity"}
_BY_TOKEN |= {"MatMul", "LayerNormalization", "Split"}
_HEADS = (0, 2, 1, 3)  # perm of a Transpose between [B, S, H, D] and [B, H, S, D]
_PICTURE = (0, 2, 3, 1)  # and of one from a picture [B, C, H, W] to tokens [B, H, W, C]


@dataclass(frozen=True)
class _Attention:
    """An Attention of heads that are cut from tokens; ``end`` is the Reshape of its result back to tokens."""

    node: ir.Node
    cuts: tuple[ir.Node, ...]  # Reshapes to [B, S, H, D] of queries, keys, values
    end: ir.Node


def to_sequence_major(model: ir.Model) -> int:
    """Convert the tokens of every attention that is recognised, in place; return the number of attentions."""
    graph = model.graph
    attentions = [found for node in graph if (found := _attention(node)) is not None]
    if not attentions:
        return 0
    tokens, nodes = _flood(attentions)
    writers = nodes | {attention.end for attention in attentions}
    readers = nodes | {cut for attention in attentions for cut in attention.cuts}
    for value in tokens:
        uses = [(node, index) for node, index in value.uses() if (node in readers) != (value.producer() in writers)]
        if uses:
            swapped = _transposed(graph, value)
            for node, index in uses:
                node.replace_input_with(index, swapped)
            if value.producer() not in writers:
                swapped.shape = _swapped(value)
    for value in tokens:
        if value.producer() in writers:
            value.shape = _swapped(value)
    for attention in attentions:
        _convert(graph, attention)
    RemoveUnusedNodesPass()(model)
    return len(attentions)


def _flood(attentions: list[_Attention]) -> tuple[list[ir.Value], set[ir.Node]]:
    """Return all tokens connected with attentions through operations on single tokens, and the nodes of these."""
    waiting = [value for attention in attentions for cut in attention.cuts for value in _varying(cut)]
    waiting += [attention.end.outputs[0] for attention in attentions]
    tokens, nodes = dict.fromkeys(waiting), set[ir.Node]()
    while waiting:
        value = waiting.pop()
        for node in (value.producer(), *(use.node for use in value.uses())):
            if node is None or node in nodes or not _is_by_token(node):
                continue
            nodes.add(node)
            more = [v for v in (*_varying(node), *node.outputs) if v not in tokens]
            tokens |= dict.fromkeys(more)
            waiting += more
    return list(tokens), nodes


def _is_by_token(node: ir.Node) -> bool:
    """Return whether ``node`` does the same to each token, whatever the order of its two outer axes."""
    if node.op_type not in _BY_TOKEN or any(value.is_graph_output() for value in node.outputs):
        return False
    if node.op_type in ("LayerNormalization", "Split"):
        axis = node.attributes.get("axis")
        if axis is None or axis.as_int() not in (-1, 2):
            return False
    varying = _varying(node)
    weights = [value for value in node.inputs if value is not None and value.const_value is not None]
    if node.op_type == "MatMul":
        fits = varying == [node.inputs[0]] and len(shape_of(weights[0])) == 2
    else:
        fits = all(len(shape_of(value)) <= 1 for value in weights)
    outer = {shape_of(value)[:2] if len(shape_of(value)) == 3 else None for value in (*varying, *node.outputs)}
    return fits and len(outer) == 1 and None not in outer


def _varying(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and value.const_value is None]


def _attention(node: ir.Node) -> _Attention | None:
    """Return the nodes around an Attention whose inputs are heads cut from tokens, and whose result becomes tokens."""
    if not is_plain_attention(node):
        return None
    batch, heads, length, width = shape_of(node.outputs[0])
    merge = _only_user(node)
    end = _only_user(merge) if merge is not None and _is_transpose(merge, _HEADS) else None
    if end is None or end.op_type != "Reshape" or shape_of(end.outputs[0]) != (batch, length, heads * width):
        return None
    cuts = []
    for value in node.inputs:
        transpose = None if value is None else value.producer()
        if transpose is None or not _is_transpose(transpose, _HEADS) or _only_user(transpose) is not node:
            return None
        cut = _producer(transpose)
        if cut is None or cut.op_type != "Reshape" or _only_user(cut) is not transpose:
            return None
        tokens = shape_of(cut.inputs[0])
        if len(tokens) != 3 or tokens[::2] != (batch, heads * width):
            return None
        cuts.append(cut)
    return _Attention(node, tuple(cuts), end)


def _convert(graph: ir.Graph, attention: _Attention) -> None:
    old = attention.node
    batch, heads, length, width = shape_of(old.outputs[0])
    new = Replacement(old)
    name, add = new.name, new.add
    heads_of = []
    for cut, label in zip(attention.cuts, ("queries", "keys", "values"), strict=True):
        tokens = cut.inputs[0]
        assert tokens is not None
        shape = (shape_of(cut.outputs[0])[1], batch * heads, width)
        heads_of.append(add("Reshape", [tokens, constant(graph, [*shape], f"{name}_{label}_shape")], label, shape))
    queries, keys, values = heads_of
    factor = scalar(graph, attention_scale(old), queries, f"{name}_scale")
    scaled = add("Mul", [queries, factor], "scaled", shape_of(queries))
    shape = (batch * heads, length, shape_of(keys)[0])
    scores = add("Einsum", [scaled, keys], "scores", shape, equation="snd,tnd->nst")
    weights = add("Softmax", [scores], "weights", shape, axis=-1)
    result = add("Einsum", [weights, values], "result", shape_of(queries), equation="nst,tnd->snd")
    attention.end.replace_input_with(0, result)
    attention.end.replace_input_with(1, constant(graph, [length, batch, heads * width], f"{name}_end"))
    graph.insert_before(attention.end, new.nodes)


def _transposed(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return ``value`` with its two outer axes exchanged, made right after it; its shape is still that of ``value``."""
    name, producer = f"{value.name}_swapped", value.producer()
    picture = None if producer is None or producer.op_type != "Reshape" else _producer(producer)
    if picture is not None and _is_transpose(picture, _PICTURE):
        # [B, C, H, W] becomes [H, W, B, C] in one step; two would be two kernels.
        batch, height, width, channels = shape_of(picture.outputs[0])
        outer = ir.node("Transpose", picture.inputs, {"perm": [2, 3, 0, 1]}, name=f"{name}_outer")
        outer.outputs[0].name, outer.outputs[0].type = outer.name, value.type
        outer.outputs[0].shape = ir.Shape((height, width, batch, channels))
        shape = constant(graph, [height * width, batch, channels], f"{name}_shape")
        nodes = [outer, ir.node("Reshape", [outer.outputs[0], shape], name=name)]
    else:
        nodes = [ir.node("Transpose", [value], {"perm": [1, 0, 2]}, name=name)]
    result = nodes[-1].outputs[0]
    result.name, result.type, result.shape = name, value.type, value.shape
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return result


def _swapped(value: ir.Value) -> ir.Shape:
    one, other, last = shape_of(value)
    return ir.Shape((other, one, last))


def _is_transpose(node: ir.Node | None, order: tuple[int, ...]) -> bool:
    perm = None if node is None or node.op_type != "Transpose" else node.attributes.get("perm")
    return perm is not None and tuple(perm.as_ints()) == order


def _producer(node: ir.Node) -> ir.Node | None:
    """Return the node that computes the first input."""
    return None if node.inputs[0] is None else node.inputs[0].producer()


def _only_user(node: ir.Node) -> ir.Node | None:
    """Return the only node that reads the output of ``node``; None if there are more, or the graph returns it."""
    value = node.outputs[0]
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _run(part: Part) -> Result:
    found = to_sequence_major(part.model)
    return Result((part,), f"{found} attentions on tokens in sequence-major order" if found else None)


def _no_batch_major_left(_: Part, parts: tuple[Part, ...]) -> bool:
    return not any(_attention(node) for part in parts for node in part.model.graph)


SEQUENCE_MAJOR = Pass("sequence_major", _run, requires=(static_shapes,), ensures=(same_interface, _no_batch_major_left))
"""After ``chunk``, which does not know the products that this pass writes."""
