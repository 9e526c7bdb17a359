"""Results as tables: for the screen, and in Markdown for a page. All figures are made into text here, once."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from koala_bench.results import Measured, Results
from koala_bench.sweep import Sweep

SPEED = ("backend", "speed", "p50, ms", "p90", "p99", "spread", "pictures/s", "GFLOP/s", "of roofline")
PHASES = ("backend", "text, ms", "steps", "each", "VAE", "host")
COST = ("backend", "first, s", "memory, MB", "GPU, MB", "install, MB", "PSNR, dB")
VERSIONS = ("backend", "versions")

Rows = list[tuple[str, ...]]


def rows(results: Results) -> dict[tuple[str, ...], Rows]:
    """Return every table, columns to rows, of which each has one per backend."""
    return {
        SPEED: [_speed(results, each) for each in results.measured],
        PHASES: [_parts(results, each) for each in results.measured],
        COST: [_cost(each) for each in results.measured],
        VERSIONS: [
            (each.name, ", ".join(f"{package} {number}" for package, number in each.versions.items()))
            for each in results.measured
        ],
    }


def _speed(results: Results, each: Measured) -> tuple[str, ...]:
    median, low, high = (each.quantile(share) for share in (0.5, 0.1, 0.9))
    return (
        each.name,
        f"{results.speed(each):.2f}x",
        *(f"{1e3 * each.quantile(share):,.1f}" for share in (0.5, 0.9, 0.99)),
        f"{(high - low) / median:.0%}",
        f"{results.profile.batch / median:.2f}",
        f"{results.flops / median / 1e9:,.0f}",
        f"{results.least_seconds / median:.0%}",
    )


def _parts(results: Results, each: Measured) -> tuple[str, ...]:
    text, steps, vae, host = (each.parts[part] for part in ("text", "steps", "vae", "host"))
    return each.name, *(f"{1e3 * seconds:,.1f}" for seconds in (text, steps, steps / results.steps, vae, host))


def _cost(each: Measured) -> tuple[str, ...]:
    return (
        each.name,
        f"{each.start:.2f}",
        f"{each.host_bytes / 1e6:,.0f}",
        "-" if each.device_bytes is None else f"{each.device_bytes / 1e6:,.0f}",
        f"{each.install_bytes / 1e6:,.0f}",
        "-" if each.psnr is None else f"{each.psnr:.1f}",
    )


def tables(results: Results) -> list[Table]:
    """Return all for the screen but the versions, which are left to the files."""
    return [as_table(columns, each) for columns, each in rows(results).items() if columns != VERSIONS]


def markdown(results: Results) -> str:
    """Return all for a page."""
    text = [f"{title(results)}.", *(as_markdown(columns, each) for columns, each in rows(results).items())]
    text += [f"Not measured: {name} ({reason})." for name, reason in results.missing.items()]
    return "\n\n".join(text) + "\n"


def title(results: Results, swept: str | None = None) -> str:
    """Return in one line what was done where; ``swept`` (size, batch or steps) is left out, as it varies."""
    profile, rounds = results.profile, len(results.baseline.warm_seconds)
    told = {
        "size": f"{profile.width} x {profile.height} px",
        "batch": f"batch {profile.batch}",
        "steps": f"{results.steps} steps",
        "guidance": f"guidance {results.guidance_scale:g}",
        "runs": f"{rounds} runs each, {'one at a time' if results.alone else 'in turn'}",
    }
    where = results.machine.gpu or f"{results.machine.processor}, {results.machine.cores} cores"
    what = ", ".join(text for name, text in told.items() if name != swept)
    return f"{what}; speed against {results.baseline.name}; {where}"


def as_table(columns: Sequence[str], rows: Rows) -> Table:
    """Return a table for the screen, figures to the right."""
    shown = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    shown.columns[0].no_wrap = True
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(*row)
    return shown


def as_markdown(columns: Sequence[str], rows: Rows) -> str:
    """Return a table in Markdown."""
    aligned = "|---" if columns == VERSIONS else "|---:"
    lines = [f"| {' | '.join(columns)} |", f"|---{aligned * (len(columns) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def sweep_rows(swept: Sweep) -> list[tuple[str, ...]]:
    """Return the median milliseconds of a run, a row per backend, a column per value."""
    return [
        (name, *("-" if seconds is None else f"{1e3 * seconds:,.1f}" for seconds in medians))
        for name, medians in swept.medians().items()
    ]


def sweep_columns(swept: Sweep) -> tuple[str, ...]:
    """Return the names of the columns."""
    return (f"ms by {swept.meaning}", *map(str, swept.values))


def sweep_markdown(swept: Sweep) -> str:
    """Return the table for a page."""
    return f"{title(swept.results[0], swept.kind)}.\n\n{as_markdown(sweep_columns(swept), sweep_rows(swept))}\n"
