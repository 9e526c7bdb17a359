"""Tokens are converted where attentions are recognised, the result stays, and everything else is left alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from koala_bundle.counts import Counts
from koala_export.capture import OPSET
from koala_export.counts import count
from koala_export.passes.sequence_major import to_sequence_major

WIDTH, HEADS = 16, 2


class Block(nn.Module):
    """A self-attention and a cross-attention on a picture's tokens, as a U-Net has them, with a twist each."""

    def __init__(self, twist: str) -> None:
        super().__init__()
        self.twist = twist
        self.norm = nn.LayerNorm(WIDTH)
        self.queries, self.keys, self.values, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.prompt_keys, self.prompt_values = (nn.Linear(10, WIDTH, bias=False) for _ in range(2))
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, picture: Tensor, prompt: Tensor) -> Tensor:
        batch, channels, height, width = picture.shape
        tokens = picture.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        normed = self.norm(tokens)
        mask = torch.ones(height * width, height * width).tril().bool() if self.twist == "mask" else None
        keys = self.keys(normed)
        if self.twist == "mean":  # every token depends on all others before the attention
            keys = keys + keys.mean(1, keepdim=True)
        if self.twist == "position":
            keys = keys + torch.arange(height * width)[None, :, None] / 100
        tokens = tokens + self.out(self._attend(self.queries(normed), keys, self.values(normed), mask))
        normed = self.norm(tokens)
        tokens = tokens + self._attend(self.queries(normed), self.prompt_keys(prompt), self.prompt_values(prompt))
        value, gate = self.up(tokens).chunk(2, -1)
        tokens = tokens + self.down(value * nn.functional.gelu(gate))
        if self.twist == "result":
            return tokens
        return picture + tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = (each.view(len(each), -1, HEADS, WIDTH // HEADS).transpose(1, 2) for each in (queries, keys, values))
        result = nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return result.transpose(1, 2).reshape(queries.shape)


@pytest.mark.parametrize(("twist", "converted"), [("", 2), ("mean", 2), ("position", 2), ("result", 2), ("mask", 1)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_result_stays(twist: str, converted: int, batch: int) -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(batch, WIDTH, 3, 4), torch.randn(batch, 5, 10))
    program: Any = torch.onnx.export(Block(twist).eval(), inputs, opset_version=OPSET, dynamo=True, verbose=False)
    model: ir.Model = program.model
    feeds = {value.name: tensor.numpy() for value, tensor in zip(model.graph.inputs, inputs, strict=True)}
    before, wanted = count(model), run(model, feeds)
    assert to_sequence_major(model) == converted
    np.testing.assert_allclose(run(model, feeds), wanted, rtol=1e-5, atol=1e-6)
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["Attention"], kinds["Einsum"]) == (2 - converted, 2 * converted)
    after = count(model)
    assert (after.attentions, after.flops, nbytes(after)) == (before.attentions, before.flops, nbytes(before))
    if twist == "":
        assert kinds["Transpose"] == 4, "in, the prompt's, and two out; none at an attention"


def nbytes(counts: Counts) -> int:
    return sum(product.nbytes * product.count for product in counts.products)


def run(model: ir.Model, feeds: dict[str | None, Any]) -> Any:
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    return session.run(None, feeds)[0]
