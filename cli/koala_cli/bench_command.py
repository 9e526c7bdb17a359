"""``koala bench`` and ``koala compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from koala_cli.build_commands import BundlePath, need
from koala_cli.screen import stderr, stdout, working

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "skimage", "matplotlib")


def bench(
    bundle: BundlePath,
    source: Annotated[str, typer.Argument(help="What the bundle was exported from.", show_default=False)],
    backend: Annotated[
        list[str] | None,
        typer.Option(help="diffusers, diffusers-compile, onnxruntime, koala:TARGET, module:Class. Default: all."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Warm pictures of each backend, in turn.")] = 20,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the bundle's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the bundle's own.")] = None,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a large red circle on a white background",
    reference: Annotated[bool, typer.Option(help="Draw once with float32 PyTorch, to compare pictures with.")] = True,
    output: Annotated[Path, typer.Option(help="A folder for results.json, a Markdown table and plots.")] = Path(
        "bench-results"
    ),
) -> None:
    """Measure ways to run a checkpoint side by side: cold start, latency, memory, likeness to PyTorch.

    Each backend has a process of its own, and they draw in turn. What cannot be measured here is listed with the
    reason.
    """
    need(_PACKAGES, "bench")
    from koala_bench.results import save, table
    from koala_bench.runner import run

    with working() as report:
        results = run(bundle, source, backend, prompt, rounds, steps, guidance_scale, 0, reference, report)
    stdout.print(table(results))
    for name, reason in results.missing.items():
        stdout.print(f"not measured: {name} ({reason})", markup=False, soft_wrap=True)
    for path in save(results, output):
        stderr.print(f"wrote {path}", markup=False, soft_wrap=True)


def compare(
    before: Annotated[Path, typer.Argument(help="A results.json.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="A later one.", show_default=False)],
) -> None:
    """Say what changed between two results of koala bench, and what is within the noise."""
    need(_PACKAGES, "bench")
    from koala_bench.results import changes, load

    table = Table("backend", "before, ms", "after, ms", "")
    for row in changes(load(before), load(after)):
        table.add_row(*row)
    stdout.print(table)
