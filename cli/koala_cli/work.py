"""How much work a picture is: the counts of a bundle's components as a table, and the least time on known GPUs."""

from __future__ import annotations

from statistics import median
from typing import Any

from rich.table import Table

from koala_bundle.counts import ROOFLINES
from koala_bundle.manifest import ComponentEntry, Manifest
from koala_cli.screen import megabytes, table
from koala_runtime.budget import Budget
from koala_runtime.samplers import default_table


def _evaluations(manifest: Manifest) -> int:
    """Return how often a picture with the bundle's own scheduler and steps runs the denoiser."""
    return len(default_table(manifest).timesteps)


def runs(entry: ComponentEntry, steps: int) -> int:
    """Return how often a picture that runs the denoiser ``steps`` times runs a component."""
    if entry.steps:
        return -(-steps // entry.steps)
    if entry.name in ("vae_encoder", "preview_decoder"):  # of a picture from noise, without previews
        return 0
    return steps if any(tensor.per_step for tensor in entry.inputs) else 1


def work(manifest: Manifest) -> dict[str, Any]:
    """Return what the tables show for ``--json``: per component, and what hoisting took out of the loop."""
    evaluations = _evaluations(manifest)
    parts = {
        entry.name: {
            "runs": runs(entry, evaluations),
            "flops": entry.counts.flops,
            "float16_share": entry.counts.half_share,
            "roofline_seconds": {gpu.name: entry.counts.roofline_seconds(gpu) for gpu in ROOFLINES},
        }
        for entry in manifest.components
    }
    return {"components": parts, "hoisted": _hoisted(manifest)}


def work_table(manifest: Manifest) -> Table:
    """One row per component, figures of one run, and one row for a whole picture."""
    steps, evaluations = manifest.sampling.num_inference_steps, _evaluations(manifest)
    shown = table("per run", "runs", "nodes", "GFLOP", "weights", "float16", "attentions", "norms", figures=True)
    for entry in manifest.components:
        counts = entry.counts
        sizes = (f"{counts.flops / 1e9:,.1f}", megabytes(counts.weight_bytes), f"{counts.half_share:.0%}")
        figures = (runs(entry, evaluations), counts.nodes, *sizes, counts.attentions, counts.norms)
        shown.add_row(entry.name, *map(str, figures))
    shown.add_section()
    flops = sum(runs(entry, evaluations) * entry.counts.flops for entry in manifest.components)
    weights = sum(entry.counts.weight_bytes for entry in manifest.components)
    shown.add_row(f"{steps} steps", "", "", f"{flops / 1e9:,.1f}", megabytes(weights), "", "", "")
    return shown


def roofline_table(manifest: Manifest) -> Table:
    """The least time that each component and a picture take on known GPUs, in float16."""
    steps, evaluations = manifest.sampling.num_inference_steps, _evaluations(manifest)
    shown = table("at least, ms", *(gpu.name for gpu in ROOFLINES), figures=True)
    totals = [0.0] * len(ROOFLINES)
    for entry in manifest.components:
        least = [1e3 * entry.counts.roofline_seconds(gpu) for gpu in ROOFLINES]
        totals = [total + runs(entry, evaluations) * ms for total, ms in zip(totals, least, strict=True)]
        shown.add_row(entry.name, *(f"{ms:,.2f}" for ms in least))
    shown.add_section()
    shown.add_row(f"{steps} steps", *(f"{ms:,.2f}" for ms in totals))
    return shown


def memory_table(target: str, needed: Budget) -> Table:
    """Memory of a GPU that a picture takes, by component, and the most at once with and without low_memory."""
    shown = table(f"{target}: GPU memory", "weights", "activations", figures=True)
    for name, weights in needed.weights.items():
        activations = needed.activations[name]
        shown.add_row(name, megabytes(weights), "unknown" if activations is None else megabytes(activations))
    shown.add_section()
    shown.add_row("tensors between components", megabytes(needed.tensors), "")
    shown.add_row("at once: all weights, the largest activations, tensors", megabytes(needed.total()), "")
    shown.add_row("with low_memory: the largest phase", megabytes(needed.total(low_memory=True)), "")
    return shown


def timings_table(timings: dict[str, list[float]]) -> Table:
    """Time of each part of a picture, by the device's clock."""
    shown = table("part", "runs", "ms each, median", "ms in all", figures=True)
    for part, seconds in timings.items():
        shown.add_row(part, str(len(seconds)), f"{1e3 * median(seconds):,.2f}", f"{1e3 * sum(seconds):,.2f}")
    shown.add_section()
    shown.add_row("picture", "", "", f"{1e3 * sum(map(sum, timings.values())):,.2f}")
    return shown


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
    hoist = next((change for change in manifest.changes if change.name == "hoist"), None)
    if hoist is None:
        return {}
    before, step, prologue = hoist.before, hoist.after[hoist.component], manifest.component("prologue")
    steps = _evaluations(manifest)
    flops = before.flops - step.flops
    return {
        "nodes": before.nodes - step.nodes,
        "weight_bytes": before.weight_bytes - step.weight_bytes,
        "flops": flops,
        "tensors": len(prologue.outputs),
        "tensor_bytes": sum(tensor.nbytes for tensor in prologue.outputs),
        "flops_per_picture": steps * flops - runs(prologue, steps) * prologue.counts.flops,
    }
