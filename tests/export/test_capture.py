"""Modules become the ONNX graph that computes the same, whether or not torch has to decompose them first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from koala_export.capture import capture, translate
from koala_export.simplify import simplify


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(self.dropout(values)).contiguous().reshape(3, 4)


def plain(values: Tensor) -> Tensor:
    return values.to(torch.float64).to(torch.float32) * 2


def in_place(values: Tensor) -> Tensor:
    """An operator that changes its input."""
    result = values * 2
    result[1] += 3
    result.mul_(2)
    return result + 1


def without_translation(values: Tensor) -> Tensor:
    """An operator that has no translation to ONNX and one of torch's decompositions."""
    return torch.nan_to_num(values)


def branches(values: Tensor) -> Tensor:
    """A subgraph of its own."""
    return torch.cond(values.sum() > 0, lambda each: each + 1, lambda each: each - 1, (values,))


@pytest.mark.parametrize("function", [plain, in_place, without_translation, branches], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_result_stays(function: Callable[[Tensor], Tensor]) -> None:
    module, values = Apply(function).eval(), torch.linspace(-1, 1, 12).reshape(3, 4)
    with torch.no_grad():
        wanted = module(values).numpy()
        model = translate(capture(module, {"values": values}), ["result"])
    simplify(model)
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    assert [value.name for value in session.get_inputs()] == ["values"]
    assert [value.name for value in session.get_outputs()] == ["result"]
    np.testing.assert_allclose(session.run(None, {"values": values.numpy()})[0], wanted, rtol=1e-6)
    if function is plain:
        assert [node.op_type for node in model.graph] == ["Cast", "Cast", "Mul"]
