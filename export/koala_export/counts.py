"""Counts a graph: nodes, weights, attentions, norms, and the floating-point operations of its products."""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir

from koala_bundle.counts import Counts, Product
from koala_export.graph import shape_of

NORMS = {"GroupNormalization", "LayerNormalization", "InstanceNormalization", "RMSNormalization"}


def count(model: ir.Model) -> Counts:
    """Return the figures of ``model``; shapes are static."""
    products: Counter[tuple[str, str, int, int]] = Counter()
    kinds: Counter[str] = Counter()
    for node in model.graph:
        kinds[node.op_type] += 1
        if flops := _flops(node):
            first = node.inputs[0]
            assert first is not None and first.dtype is not None
            values = (value for value in (*node.inputs, *node.outputs) if value is not None and not _is_score(value))
            products[node.op_type, first.dtype.numpy().name, flops, sum(_nbytes(value) for value in values)] += 1
    return Counts(
        nodes=sum(kinds.values()),
        weight_bytes=sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value),
        attentions=sum(_is_attention(node) for node in model.graph),
        norms=sum(kinds[name] for name in NORMS),
        products=tuple(Product(*key, times) for key, times in sorted(products.items())),
    )


def _is_attention(node: ir.Node) -> bool:
    """Return whether it is an Attention, or the Softmax of one that ``passes.sequence_major`` wrote as products."""
    if node.op_type == "Softmax" and node.inputs[0] is not None:
        before = node.inputs[0].producer()
        return before is not None and before.op_type == "Einsum"
    return node.op_type == "Attention"


def _is_score(value: ir.Value) -> bool:
    """Tell whether a value is between the two products of an attention: fused, it is never written to memory."""
    producer = value.producer()
    around = [use.node for use in value.uses()] + ([] if producer is None else [producer])
    return any(_is_attention(node) and node.op_type == "Softmax" for node in around)


def _flops(node: ir.Node) -> int:
    """Two per multiplication and addition; 0 for other operations."""
    if node.op_type not in ("MatMul", "Gemm", "Conv", "Attention", "Einsum"):
        return 0
    if node.op_type == "Einsum":
        letters = node.attributes["equation"].as_string().split("->")[0].split(",")
        sides = {
            name: side
            for v, axes in zip(node.inputs, letters, strict=True)
            for name, side in zip(axes, shape_of(v), strict=True)
        }
        return 2 * math.prod(sides.values())
    shapes = [None if value is None else shape_of(value) for value in node.inputs]
    first, second, output = shapes[0], shapes[1], shape_of(node.outputs[0])
    assert first is not None and second is not None
    if node.op_type == "MatMul":
        return 2 * math.prod(output) * first[-1]
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transA")
        return 2 * math.prod(output) * first[0 if transposed is not None and transposed.as_int() else 1]
    if node.op_type == "Conv":
        return 2 * math.prod(output) * math.prod(second[1:])  # weight [out, in / groups, *kernel]
    # Queries [B, heads, S, d] or [B, S, heads * d]: scores are S x T products of length d in each head, and so is the
    # sum of values; with 3 axes heads * d takes the place of both.
    queries, keys = (first[-2], second[-2])
    width = first[-1] * (first[1] if len(first) == 4 else 1)
    return 2 * 2 * first[0] * queries * keys * width


def _nbytes(value: ir.Value) -> int:
    assert value.dtype is not None
    return math.ceil(math.prod(shape_of(value)) * value.dtype.itemsize)  # packed types have less than a byte an item
