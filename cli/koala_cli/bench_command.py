"""``koala bench`` and ``koala compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from koala_bundle.errors import ArgumentError
from koala_cli.build_commands import BundlePath, need, quiet_libraries
from koala_cli.screen import stderr, stdout, working

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "skimage", "matplotlib")


def bench(
    bundle: BundlePath,
    source: Annotated[str, typer.Argument(help="What the bundle was exported from.", show_default=False)],
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="diffusers, diffusers-compile, optimum-onnx, openvino-genai, onnxruntime:PROVIDER, koala:TARGET, "
            "module:Class; may be repeated. Default: all.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Warm runs of each backend, in turn.")] = 20,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. Default: the bundle's own.", show_default=False)
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default: the bundle's own.", show_default=False)] = None,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a large red circle on a white background",
    reference: Annotated[bool, typer.Option(help="Draw once with float32 PyTorch, to compare pictures with.")] = True,
    alone: Annotated[
        bool, typer.Option("--alone", help="One backend at a time, where they do not fit into memory side by side.")
    ] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="SOURCE is a preset, and the bundle was exported so, too.")
    ] = False,
    python: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: run this backend with another Python. May be repeated.", show_default=False),
    ] = None,
    steps_sweep: Annotated[
        str | None, typer.Option(help="Such as 1,4,10: measure with each number of steps.", show_default=False)
    ] = None,
    batch_sweep: Annotated[
        str | None, typer.Option(help="Such as 1,2,4: export, build and measure each batch.", show_default=False)
    ] = None,
    size_sweep: Annotated[
        str | None, typer.Option(help="Such as 512,1024: export, build and measure each size.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="A folder for JSON, tables in Markdown and plots.")] = Path(
        "bench-results"
    ),
) -> None:
    """Measure ways to run a checkpoint side by side: cold start, latency, memory, likeness to PyTorch.

    Each backend has a process of its own, and they draw in turn. What cannot be measured here is listed with the
    reason.
    """
    need(_PACKAGES, "bench")
    from koala_bench.report import save, save_sweep
    from koala_bench.runner import BenchOptions, run
    from koala_bench.sweep import sweep
    from koala_bench.tables import as_table, sweep_columns, sweep_rows, tables, title

    quiet_libraries()
    swept = {"steps": steps_sweep, "batch": batch_sweep, "size": size_sweep}
    wanted = {kind: _values(f"--{kind}-sweep", text) for kind, text in swept.items() if text is not None}
    plan = BenchOptions(
        names=None if backend is None else tuple(backend),
        prompt=prompt,
        rounds=rounds,
        steps=steps,
        guidance_scale=guidance_scale,
        reference=reference,
        alone=alone,
        random_weights=random_weights,
        pythons=_pythons(python or ()),
    )
    made: list[Path] = []
    lines: list[str] = []
    shown: list[Table] = []
    missing: dict[str, str] = {}
    with working() as report:
        if not wanted:
            results = run(bundle, source, plan, report)
            shown, missing = tables(results), results.not_measured
            lines.append(title(results))
            made += save(results, output)
        for kind, values in wanted.items():
            found = sweep(kind, values, bundle, source, plan, report)
            lines.append(title(found.results[0], kind))
            shown.append(as_table(sweep_columns(found), sweep_rows(found)))
            for results in found.results:
                missing |= results.not_measured
            made += save_sweep(found, output)
    for line in lines:
        stdout.print(line, markup=False)
    for table in shown:
        stdout.print(table)
    for name, reason in missing.items():
        stdout.print(f"not measured: {name} ({reason})", markup=False, soft_wrap=True)
    for path in made:
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


def _values(option: str, text: str) -> list[int]:
    values = text.split(",")
    if all(value.strip().isdecimal() and int(value) > 0 for value in values):
        return [int(value) for value in values]
    raise ArgumentError(option, expected="whole numbers such as 1,2,4", found=repr(text), fix="separate by commas")


def _pythons(options: Sequence[str]) -> dict[str, str]:
    pythons = {}
    for option in options:
        name, _, path = option.partition("=")
        if not Path(path).is_file():
            raise ArgumentError(
                "--python", expected="NAME=PATH of a Python", found=repr(option), fix="pass one such as bin/python"
            )
        pythons[name] = path
    return pythons
