"""Counted operations against torch's own counter, and the roofline against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from koala_bundle.counts import Counts, Product, Roofline
from koala_bundle.manifest import read_manifest
from koala_bundle.tensors import components
from koala_export.modules import build_module
from koala_export.source import open_source
from koala_export.trace import example_inputs

SHAPE = "koala-700m-like"


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2", "denoiser", "vae_decoder"])
def test_operations_are_those_that_torch_counts(
    name: str, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]
) -> None:
    manifest = read_manifest(bundle(SHAPE))
    source = open_source(str(checkpoint(SHAPE)), random_weights=False, precision="fp32")
    module = build_module(name, source, manifest.spec, manifest.profile)
    component = next(c for c in components(manifest.spec, manifest.profile) if c.name == name)
    # Plain attention: torch's counter does not know the fused one of its CPU backend.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(**example_inputs(component))
    # The last layer of the first text encoder is traced and dropped: torch runs it, the graph has not got it.
    layers = 3 / 2 if name == "text_encoder" else 1
    assert manifest.traced[name].flops * layers == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_hoisting_takes_operations_out_of_the_step(bundle: Callable[..., Path]) -> None:
    manifest = read_manifest(bundle(SHAPE))
    before, step, prologue = (
        manifest.traced["denoiser"],
        *(manifest.component(n).counts for n in ("denoiser", "prologue")),
    )
    assert step.flops < before.flops
    assert step.weight_bytes + prologue.weight_bytes == pytest.approx(before.weight_bytes, rel=0.01)
    assert (step.attentions, step.norms) == (before.attentions, before.norms)


def test_roofline() -> None:
    products = (Product("Conv", "float16", 6_000, 10, 2), Product("MatMul", "float32", 100, 400, 3))
    counts = Counts(9, 0, 0, 0, products)
    assert counts.flops == 12_300
    assert counts.half_share == pytest.approx(12_000 / 12_300)
    gpu = Roofline("one", flops_per_second=1000, bytes_per_second=100)
    assert counts.roofline_seconds(gpu) == pytest.approx(2 * 6 + 3 * 4)
