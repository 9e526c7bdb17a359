"""Graphs in the operations that ONNX Runtime's CUDA provider has fused kernels for.

Without them, attention keeps its scores in memory, and group normalisation becomes a dozen operations. The operations
are those of ONNX Runtime's domain ``com.microsoft`` (docs/ContribOperators.md of ONNX Runtime defines them).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from koala_engines.weights import read_values

_DOMAIN = "com.microsoft"
_SCORES, _MIX = "snd,tnd->nst", "nst,tnd->snd"  # as the export writes attention on sequence-major tokens


def write_fused(source: Path, result: Path) -> None:
    """Write the model ``source`` with fused attentions and group normalisations; it refers to the same weights."""
    model = onnx.load(source, load_external_data=False)
    graph = _Graph(model.graph, source.parent)
    for node in [*model.graph.node]:
        if node.op_type == "Einsum" and _attribute(node, "equation") == _MIX.encode():
            graph.fuse_attention(node)
        elif node.op_type == "GroupNormalization":
            graph.fuse_group_norm(node)
    graph.write()
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, result)


class _Graph:
    """A graph that is rewritten: what makes and who uses each tensor, and what replaces the nodes that were fused."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self._graph, self._folder = graph, folder
        self._maker = {output: node for node in graph.node for output in node.output}
        self._users = Counter(name for node in graph.node for name in node.input)
        self._users.update(value.name for value in graph.output)
        self._shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._instead: dict[str, list[onnx.NodeProto]] = {}  # by the output of the node whose place they take
        self._fused: set[str] = set()

    def fuse_attention(self, mix: onnx.NodeProto) -> None:
        """Make a softmax between two products one MultiHeadAttention.

        Pairs of picture and head are the N of queries [S, N, D], so in memory they are the heads of one picture: its
        queries [1, S, N * D].
        """
        softmax = self._only(mix.input[0], "Softmax")
        product = softmax and self._only(softmax.input[0], "Einsum")
        if not (softmax and product) or _attribute(product, "equation") != _SCORES.encode():
            return
        (queries, keys), values, scale = product.input, mix.input[1], 1.0
        scaled = self._only(queries, "Mul")
        if scaled and (factor := self._weights.get(scaled.input[1])) is not None and not factor.dims:
            queries, scale = scaled.input[0], float(read_values(factor, self._folder))
            self._fused.add(scaled.output[0])
        stem, (_, heads, size) = mix.output[0], self._shapes[mix.output[0]]
        flat = self._constant(f"{stem}_flat", np.array([1, -1, heads * size]))
        whole = self._constant(f"{stem}_heads", np.array([-1, heads, size]))
        inputs = [f"{stem}_{which}" for which in ("queries_flat", "keys_flat", "values_flat")]
        self._instead[stem] = [
            *(
                helper.make_node("Reshape", [tensor, flat], [name])
                for tensor, name in zip((queries, keys, values), inputs, strict=True)
            ),
            helper.make_node(
                "MultiHeadAttention", inputs, [f"{stem}_fused"], domain=_DOMAIN, num_heads=heads, scale=scale
            ),
            helper.make_node("Reshape", [f"{stem}_fused", whole], [stem]),
        ]
        self._fused |= {softmax.output[0], product.output[0]}

    def fuse_group_norm(self, norm: onnx.NodeProto) -> None:
        """Make a group normalisation, with the SiLU that follows it, one GroupNorm, which works channels-last.

        Its kernel works on pairs of channels of a group, and takes scale and bias in float32.
        """
        shape, groups = self._shapes.get(norm.input[0], []), int(_attribute(norm, "num_groups"))
        known = all(name in self._weights for name in norm.input[1:])
        if len(shape) != 4 or shape[1] // groups % 2 or not known:
            return
        stem, result = norm.output[0], self._silu_of(norm.output[0])
        parameters = [
            self._constant(f"{stem}_{which}", read_values(self._weights[name], self._folder).astype(np.float32))
            for which, name in zip(("scale", "bias"), norm.input[1:], strict=True)
        ]
        self._instead[result or stem] = [
            helper.make_node("Transpose", [norm.input[0]], [f"{stem}_last"], perm=[0, 2, 3, 1]),
            helper.make_node(
                "GroupNorm",
                [f"{stem}_last", *parameters],
                [f"{stem}_normal"],
                domain=_DOMAIN,
                groups=groups,
                epsilon=float(_attribute(norm, "epsilon", 1e-5)),  # the operator's default
                activation=int(result is not None),
                channels_last=1,
            ),
            helper.make_node("Transpose", [f"{stem}_normal"], [result or stem], perm=[0, 3, 1, 2]),
        ]
        if result:
            self._fused.add(stem)

    def write(self) -> None:
        """Write the nodes and remove those that were fused."""
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            name = node.output[0]
            nodes += self._instead.get(name, [] if name in self._fused else [node])
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _silu_of(self, name: str) -> str | None:
        """Return the product of ``name`` and its sigmoid, if nothing else uses ``name``."""
        for node in self._graph.node:
            if node.op_type == "Mul" and name in node.input and self._users[name] == 2:
                other = node.input[1] if node.input[0] == name else node.input[0]
                sigmoid = self._only(other, "Sigmoid")
                if sigmoid and sigmoid.input[0] == name:
                    self._fused.add(other)
                    return str(node.output[0])
        return None

    def _only(self, name: str, operation: str) -> onnx.NodeProto | None:
        """Return what makes ``name``, if it is this operation and there is one user."""
        maker = self._maker.get(name)
        return maker if maker is not None and maker.op_type == operation and self._users[name] == 1 else None

    def _constant(self, name: str, values: Any) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)
