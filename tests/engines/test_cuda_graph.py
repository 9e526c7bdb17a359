"""The graphs of the ``cuda`` target: fused operations, by their documented formulas, are what they replace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from koala_engines.cuda_graph import write_fused

Array = NDArray[Any]
QUERIES, KEYS, HEADS, SIZE, CHANNELS, GROUPS = 6, 5, 4, 8, 12, 3


class GroupNorm(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, x: Array, scale: Array, bias: Array, **attributes: Any) -> tuple[Array]:
        assert attributes["channels_last"] == 1
        assert scale.dtype == bias.dtype == np.float32
        groups = x.reshape(x.shape[0], -1, attributes["groups"], x.shape[-1] // attributes["groups"])
        centred = groups - groups.mean((1, 3), keepdims=True)
        deviation = np.sqrt(groups.var((1, 3), keepdims=True) + attributes["epsilon"])
        normal = (centred / deviation).reshape(x.shape) * scale + bias
        return ((normal / (1 + np.exp(-normal)) if attributes["activation"] else normal).astype(x.dtype),)


class MultiHeadAttention(OpRun):  # type: ignore[misc]
    op_domain = "com.microsoft"

    def _run(self, queries: Array, keys: Array, values: Array, **attributes: Any) -> tuple[Array]:
        heads = attributes["num_heads"]
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (queries, keys, values))
        weights = np.exp(attributes["scale"] * q @ k.transpose(0, 1, 3, 2))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return (mixed.transpose(0, 2, 1, 3).reshape(queries.shape),)


def attention(*, scaled: bool = True) -> tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, Array]]:
    make = helper.make_node
    nodes = [
        *([make("Mul", ["q", "factor"], ["scaled"])] if scaled else []),
        make("Einsum", ["scaled" if scaled else "q", "k"], ["scores"], equation="snd,tnd->nst"),
        make("Softmax", ["scores"], ["weights"], axis=-1),
        make("Einsum", ["weights", "v"], ["y"], equation="nst,tnd->snd"),
    ]
    shapes = {"q": [QUERIES, HEADS, SIZE], "k": [KEYS, HEADS, SIZE], "v": [KEYS, HEADS, SIZE], "y": [6, HEADS, SIZE]}
    return nodes, shapes, {"factor": np.array(0.35, np.float32)}


def norm(after: str = "silu") -> tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, Array]]:
    make, rng = helper.make_node, np.random.default_rng(1)
    nodes = [make("GroupNormalization", ["x", "scale", "bias"], ["n"], num_groups=GROUPS, epsilon=1e-3)]
    if after == "silu":
        nodes += [make("Sigmoid", ["n"], ["s"]), make("Mul", ["n", "s"], ["y"])]
    elif after == "used twice":
        nodes += [make("Sigmoid", ["n"], ["s"]), make("Mul", ["n", "s"], ["m"]), make("Add", ["m", "n"], ["y"])]
    else:
        nodes += [make("Neg", ["n"], ["y"])]
    weights = {name: rng.standard_normal(CHANNELS, np.float32) for name in ("scale", "bias")}
    return nodes, {"x": [2, CHANNELS, 4, 4], "y": [2, CHANNELS, 4, 4]}, weights


def fused(parts: tuple[list[onnx.NodeProto], dict[str, list[int]], dict[str, Array]], folder: Path) -> Counter[str]:
    """Fuse a graph, hold its result against ONNX Runtime's on the graph as it was, return its operations."""
    nodes, shapes, weights = parts
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    inputs = [value for name, value in values.items() if name != "y"]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, [values["y"]], initializers, value_info=[*values.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, folder / "a.onnx")
    write_fused(folder / "a.onnx", folder / "b.onnx")
    rng = np.random.default_rng(0)
    feeds = {value.name: rng.standard_normal(shapes[value.name], np.float32) for value in inputs}
    session = onnxruntime.InferenceSession(folder / "a.onnx", providers=["CPUExecutionProvider"])
    result = onnx.load(folder / "b.onnx")
    got = ReferenceEvaluator(result, new_ops=[GroupNorm, MultiHeadAttention]).run(None, feeds)[0]
    assert np.abs(session.run(None, feeds)[0] - got).max() < 1e-5
    return Counter(node.op_type for node in result.graph.node)


@pytest.mark.parametrize("scaled", [True, False])
def test_attention(scaled: bool, tmp_path: Path) -> None:
    assert fused(attention(scaled=scaled), tmp_path) == {"Reshape": 4, "MultiHeadAttention": 1}
    feeds = {
        name: np.random.default_rng(2).standard_normal((5 if name != "q" else 6, HEADS, SIZE), np.float32)
        for name in "qkv"
    }
    sessions = [
        onnxruntime.InferenceSession(tmp_path / f, providers=["CPUExecutionProvider"]) for f in ("a.onnx", "b.onnx")
    ]
    wanted, got = (session.run(None, feeds)[0] for session in sessions)
    assert np.abs(wanted - got).max() < 1e-5, "ONNX Runtime's own kernel"


@pytest.mark.parametrize(
    ("after", "kept"),
    [("silu", {}), ("nothing", {"Neg": 1}), ("used twice", {"Sigmoid": 1, "Mul": 1, "Add": 1})],
)
def test_group_norm(after: str, kept: dict[str, int], tmp_path: Path) -> None:
    assert fused(norm(after), tmp_path) == {"Transpose": 2, "GroupNorm": 1, **kept}


def test_what_does_not_fit_stays(tmp_path: Path) -> None:
    nodes, shapes, weights = norm()
    odd = {name: [2, GROUPS, 4, 4] for name in shapes}  # one channel per group
    kept = fused((nodes, odd, {name: array[:GROUPS] for name, array in weights.items()}), tmp_path)
    assert kept == {"GroupNormalization": 1, "Sigmoid": 1, "Mul": 1}
    nodes, shapes, weights = attention()
    nodes.append(helper.make_node("ReduceSum", ["weights"], ["total"], keepdims=0))
    nodes[-2].output[0] = "mixed"
    nodes.append(helper.make_node("Add", ["mixed", "total"], ["y"]))
    assert fused((nodes, shapes, weights), tmp_path)["Einsum"] == 2, "the weights have another user"
