"""Attention in chunks of queries gives the same numbers, and only where it is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koala_export.graph import shape_of
from koala_export.passes.chunk import chunk_attention


def attention(
    batch: int, heads: int, tokens: int, others: int, width: int, dtype: Any, **attributes: float
) -> ir.Model:
    shapes = {"queries": (tokens, width), "keys": (others, width), "values": (others, width)}
    kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    inputs = [ir.Value(name=n, shape=ir.Shape((batch, heads, *shape)), type=kind) for n, shape in shapes.items()]
    node = ir.node("Attention", inputs, attributes, name="attention")
    output = node.outputs[0]
    output.name, output.shape, output.type = "output", ir.Shape((batch, heads, tokens, width)), kind
    return ir.Model(ir.Graph(inputs, [output], nodes=[node], opset_imports={"": 23}), ir_version=10)


def run(model: ir.Model, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    return np.asarray(session.run(None, feeds)[0])


@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 24), st.integers(1, 9), st.integers(1, 8)),
    scratch=st.integers(1, 2000),
    scale=st.none() | st.floats(0.1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_same_numbers(sizes: tuple[int, ...], scratch: int, scale: float | None, seed: int) -> None:
    attributes = {} if scale is None else {"scale": scale}
    plain, chunked = (attention(*sizes, np.float32, **attributes) for _ in range(2))
    found = chunk_attention(chunked, scratch=scratch, widest_fused=0)
    batch, heads, tokens, others, _ = sizes
    assert found == (2 * 4 * batch * heads * tokens * others > scratch and tokens > 1)
    rng = np.random.default_rng(seed)
    feeds = {v.name: rng.standard_normal([int(n) for n in v.shape]).astype(np.float32) for v in plain.graph.inputs}
    np.testing.assert_allclose(run(chunked, feeds), run(plain, feeds), rtol=1e-5, atol=1e-6)
    for node in chunked.graph:
        if node.op_type == "Softmax" and tokens > 1:
            shape = shape_of(node.outputs[0])
            assert 2 * 4 * np.prod(shape) <= scratch or shape[2] == 1


def test_the_vae_of_sdxl_takes_64_mib() -> None:
    model = attention(1, 1, 16384, 16384, 512, np.float16)
    assert chunk_attention(model) == 1
    scores = [node.outputs[0].shape for node in model.graph if node.op_type == "Softmax"]
    assert scores == [ir.Shape((1, 1, 1024, 16384))] * 16  # 32 MiB, and as much again for the weights


@pytest.mark.parametrize(
    "model",
    [
        attention(2, 20, 1024, 1024, 64, np.float16),  # what TensorRT fuses
        attention(1, 1, 256, 256, 512, np.float16),  # what fits as it is
        attention(1, 1, 16384, 16384, 512, np.float16, is_causal=1),  # another formula
    ],
)
def test_others_stay(model: ir.Model) -> None:
    assert chunk_attention(model) == 0
    assert [node.op_type for node in model.graph] == ["Attention"]
