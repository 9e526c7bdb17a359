"""What the compilers' tests build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """An ONNX file of one product of matrices, with its weights beside it."""
    weights = onnx.numpy_helper.from_array(np.ones((64, 64), np.float16), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [32, 64]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = tmp_path / "product.onnx"
    onnx.save(model, path, save_as_external_data=True, location="product.onnx.data", size_threshold=0)
    return path
