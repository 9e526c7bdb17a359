"""How much work a picture is: the counts of a bundle's components as a table, and the least time on known GPUs."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from koala_cli.screen import megabytes
from koala_runtime.contract.counts import ROOFLINES
from koala_runtime.contract.manifest import ComponentEntry, Manifest


def runs(entry: ComponentEntry, steps: int) -> int:
    """Return how often a picture of ``steps`` denoising steps runs a component."""
    if entry.steps:
        return -(-steps // entry.steps)
    return steps if any(tensor.per_step for tensor in entry.inputs) else 1


def work(manifest: Manifest) -> dict[str, Any]:
    """Return the same as ``work_table`` for ``--json``: per component, and what hoisting took out of the loop."""
    steps = manifest.sampling.num_inference_steps
    parts = {
        entry.name: {
            "runs": runs(entry, steps),
            "flops": entry.counts.flops,
            "float16_share": entry.counts.half_share,
            "roofline_seconds": {gpu.name: entry.counts.roofline_seconds(gpu) for gpu in ROOFLINES},
        }
        for entry in manifest.components
    }
    return {"components": parts, "hoisted": _hoisted(manifest)}


def work_table(manifest: Manifest) -> Table:
    """One row per component, per run, and one for a whole picture."""
    steps = manifest.sampling.num_inference_steps
    gpus = [f"{gpu.name}, ms" for gpu in ROOFLINES]
    table = Table("per run", "runs", "nodes", "GFLOP", "weights", "float16", "attentions", "norms", *gpus)
    for column in table.columns[1:]:
        column.justify = "right"
    totals, flops, weights = [0.0] * len(ROOFLINES), 0, 0
    for entry in manifest.components:
        counts, times = entry.counts, runs(entry, steps)
        least = [1e3 * counts.roofline_seconds(gpu) for gpu in ROOFLINES]
        totals = [total + times * ms for total, ms in zip(totals, least, strict=True)]
        flops, weights = flops + times * counts.flops, weights + counts.weight_bytes
        figures = (times, counts.nodes, f"{counts.flops / 1e9:,.1f}", megabytes(counts.weight_bytes))
        share = (f"{counts.half_share:.0%}", counts.attentions, counts.norms)
        table.add_row(entry.name, *map(str, (*figures, *share)), *(f"{ms:,.2f}" for ms in least))
    table.add_section()
    sums = ("", "", f"{flops / 1e9:,.1f}", megabytes(weights), "", "", "")
    table.add_row(f"a picture, {steps} steps", *sums, *(f"{ms:,.1f}" for ms in totals))
    return table


def hoisted_line(manifest: Manifest) -> str | None:
    """Return in one sentence what hoisting bought, or None where it did not run."""
    saved = _hoisted(manifest)
    if not saved:
        return None
    return (
        f"hoisted out of each step: {saved['nodes']} nodes, {megabytes(saved['weight_bytes'])} of weights and "
        f"{saved['flops'] / 1e9:,.1f} GFLOP, over {saved['tensors']} tensors of {megabytes(saved['tensor_bytes'])}; "
        f"in {manifest.sampling.num_inference_steps} steps {saved['flops_per_picture'] / 1e9:,.1f} GFLOP less"
    )


def _hoisted(manifest: Manifest) -> dict[str, int]:
    names = {entry.name for entry in manifest.components}
    if "prologue" not in names:
        return {}
    before, step, prologue = manifest.traced["denoiser"], manifest.component("denoiser"), manifest.component("prologue")
    steps = manifest.sampling.num_inference_steps
    flops = before.flops - step.counts.flops
    return {
        "nodes": before.nodes - step.counts.nodes,
        "weight_bytes": before.weight_bytes - step.counts.weight_bytes,
        "flops": flops,
        "tensors": len(prologue.outputs),
        "tensor_bytes": sum(tensor.nbytes for tensor in prologue.outputs),
        "flops_per_picture": steps * flops - runs(prologue, steps) * prologue.counts.flops,
    }
