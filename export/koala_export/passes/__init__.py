"""Graph passes between trace and engines; each gives graphs that compute the same, and can be left out.

- ``chunk``: an attention that cannot be fused takes its queries in chunks
- ``tokens``: tokens in the order in which attention needs no rearranging
- ``hoist``: what does not depend on the latents leaves the denoising loop
- ``lift``: one step's graph for all steps at once, which hoisting needs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from koala_bundle.errors import ArgumentError
from koala_bundle.spec import PASSES
from koala_bundle.tensors import Component, IOTensor
from koala_export.passes.chunk import chunk_attention
from koala_export.passes.graph import shape_of
from koala_export.passes.hoist import hoist, pad_rows
from koala_export.passes.sequence_major import to_sequence_major

STEPS_AT_ONCE = 32
"""Rows that the prologue computes in one run: a step count above it runs it again. For the full-size U-Net 32 rows
cost 2 GFLOP, a thousandth of one step."""


def choose_passes(without: Sequence[str]) -> tuple[str, ...]:
    """Return the passes that are to run. Raises ArgumentError for a name that is none."""
    for name in without:
        if name not in PASSES:
            raise ArgumentError("without", expected=" or ".join(PASSES), found=repr(name), fix="pass one of these")
    return tuple(name for name in PASSES if name not in without)


def run_passes(
    component: Component, model: ir.Model, passes: Sequence[str], report: Callable[[str], None]
) -> list[tuple[Component, ir.Model]]:
    """Return the components that ``component`` becomes, in the order in which they run; ``model`` may be changed."""
    if "chunk" in passes and (found := chunk_attention(model)):
        report(f"{component.name}: {found} attention in chunks of queries")
    if "tokens" in passes and (found := to_sequence_major(model)):
        report(f"{component.name}: {found} attentions on tokens in sequence-major order")
    if component.name == "denoiser" and "hoist" in passes:
        return _hoisted(component, model, report)
    return [(component, model)]


def _hoisted(component: Component, model: ir.Model, report: Callable[[str], None]) -> list[tuple[Component, ir.Model]]:
    per_step = [tensor.name for tensor in component.inputs if tensor.per_step]
    split = hoist(model, latents=("latents",), per_step=per_step, steps=STEPS_AT_ONCE)
    if split is None:
        return [(component, model)]
    values = {str(value.name): value for value in split.step.graph.inputs}
    known = {tensor.name: tensor for tensor in component.inputs}
    known |= {name: _tensor(values[name], per_step=name in split.tables) for name in split.cut}
    needed = [str(value.name) for value in split.prologue.graph.inputs]
    prologue = Component(
        "prologue", tuple(known[name] for name in needed), tuple(known[name] for name in split.cut), STEPS_AT_ONCE
    )
    pad_rows(split.prologue, prologue)
    step = replace(component, inputs=tuple(known[name] for name in values))
    moved = model.graph.num_nodes() - split.step.graph.num_nodes()
    report(f"{component.name}: {moved} of {model.graph.num_nodes()} nodes left the loop, over {len(split.cut)} tensors")
    return [(prologue, split.prologue), (step, split.step)]


def _tensor(value: ir.Value, *, per_step: bool) -> IOTensor:
    assert value.dtype is not None
    return IOTensor(str(value.name), value.dtype.numpy().name, shape_of(value), per_step)
