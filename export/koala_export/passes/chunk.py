"""Attention whose scores would fill memory: queries in chunks, one after the other.

A row of scores needs its own query and all keys, and softmax goes by row, so chunks of queries give the same numbers.
TensorRT has no fused attention for heads wider than 256; the VAE's single head of 512 over 16,384 tokens would write
all 16,384 x 16,384 scores, 512 MiB in float16, and again as many weights.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from koala_export.graph import (
    Replacement,
    Shape,
    attention_scale,
    constant,
    is_plain_attention,
    scalar,
    shape_of,
)
from koala_export.passes.base import Part, Pass, Result, same_interface, static_shapes

SCRATCH = 64 * 2**20  # bytes for the scores and weights of one chunk
_WIDEST_FUSED = 256  # head size; tensorrt 11 and TensorRT-RTX 1.7 fuse up to here


def chunk_attention(model: ir.Model, *, scratch: int = SCRATCH, widest_fused: int = _WIDEST_FUSED) -> int:
    """Split attentions that cannot be fused and need more than ``scratch`` bytes, in place; return how many."""
    found = _too_large(model, scratch, widest_fused)
    for node, chunks in found:
        _split(model.graph, node, chunks)
    return len(found)


def _too_large(model: ir.Model, scratch: int, widest_fused: int) -> list[tuple[ir.Node, int]]:
    """Return attentions that cannot be fused and need more than ``scratch`` bytes, and in how many chunks they fit."""
    found = []
    for node in model.graph:
        if is_plain_attention(node):
            queries, keys = shape_of(node.inputs[0]), shape_of(node.inputs[1])
            chunks = _chunks(queries, keys, _itemsize(node), scratch)
            if queries[-1] > widest_fused and chunks > 1:
                found.append((node, chunks))
    return found


def _itemsize(node: ir.Node) -> int:
    value = node.inputs[0]
    assert value is not None and value.dtype is not None
    return int(value.dtype.itemsize)


def _chunks(queries: Shape, keys: Shape, itemsize: int, scratch: int) -> int:
    """Return the smallest even division of the queries whose scores and weights fit."""
    batch, heads, tokens, _ = queries
    for chunks in range(1, tokens + 1):
        if tokens % chunks == 0 and 2 * batch * heads * (tokens // chunks) * keys[2] * itemsize <= scratch:
            return chunks
    return tokens


def _split(graph: ir.Graph, node: ir.Node, chunks: int) -> None:
    new = Replacement(node)
    name, add = new.name, new.add
    queries, keys, values = node.inputs
    assert queries is not None and keys is not None and values is not None
    # As the operator defines it: both sides get the root of the scale, which keeps float16 scores in range.
    factor = scalar(graph, math.sqrt(attention_scale(node)), queries, f"{name}_root")
    batch, heads, tokens, width = shape_of(queries)
    length, others, axis = tokens // chunks, shape_of(keys)[2], constant(graph, [2], f"{name}_axis")
    scaled = add("Mul", [queries, factor], "queries", shape_of(queries))
    across = add("Mul", [keys, factor], "keys", shape_of(keys))
    across = add("Transpose", [across], "across", (batch, heads, width, others), perm=[0, 1, 3, 2])
    parts = []
    for i in range(chunks):
        ends = [constant(graph, [n * length], f"{name}_{word}_{i}") for n, word in ((i, "from"), (i + 1, "to"))]
        some = add("Slice", [scaled, *ends, axis], f"queries_{i}", (batch, heads, length, width))
        scores = add("MatMul", [some, across], f"scores_{i}", (batch, heads, length, others))
        weights = add("Softmax", [scores], f"weights_{i}", (batch, heads, length, others), axis=-1)
        output = (batch, heads, length, shape_of(values)[3])
        parts.append(add("MatMul", [weights, values], f"part_{i}", output))
    whole = add("Concat", parts, "whole", shape_of(node.outputs[0]), axis=2)
    old = node.outputs[0]
    graph.insert_before(node, new.nodes)
    old.name, whole.name = f"{name}_before", name
    old.replace_all_uses_with(whole, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _run(part: Part) -> Result:
    found = chunk_attention(part.model)
    return Result((part,), f"{found} attention in chunks of queries" if found else None)


def _scores_fit(_: Part, parts: tuple[Part, ...]) -> bool:
    return not any(_too_large(part.model, SCRATCH, _WIDEST_FUSED) for part in parts)


CHUNK = Pass("chunk", _run, requires=(static_shapes,), ensures=(same_interface, _scores_fit))
