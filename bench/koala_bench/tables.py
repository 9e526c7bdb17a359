"""Results as tables, for the terminal and in Markdown. All figures are formatted here."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from koala_bench.backends.base import PHASES
from koala_bench.results import Measurement, Results
from koala_bench.sweep import Sweep

SPEED_COLUMNS = ("backend", "speed", "p50, ms", "p90", "p99", "spread", "pictures/s", "GFLOP/s", "of roofline")
PHASE_COLUMNS = ("backend", "text, ms", "steps", "each", "VAE", "host")
COST_COLUMNS = ("backend", "first, s", "memory, MB", "GPU, MB", "install, MB", "PSNR, dB")
VERSION_COLUMNS = ("backend", "versions")

Rows = list[tuple[str, ...]]


def rows(results: Results) -> dict[tuple[str, ...], Rows]:
    """Return the rows of every table by its columns; each row is one backend."""
    return {
        SPEED_COLUMNS: [_speed(results, each) for each in results.measured],
        PHASE_COLUMNS: [_phases(results, each) for each in results.measured],
        COST_COLUMNS: [_cost(each) for each in results.measured],
        VERSION_COLUMNS: [
            (each.name, ", ".join(f"{package} {number}" for package, number in sorted(each.versions.items())))
            for each in results.measured
        ],
    }


def _speed(results: Results, each: Measurement) -> tuple[str, ...]:
    median, low, high = (each.quantile(p) for p in (0.5, 0.1, 0.9))
    return (
        each.name,
        f"{results.speedup(each):.2f}x",
        *(f"{1e3 * each.quantile(p):,.1f}" for p in (0.5, 0.9, 0.99)),
        f"{(high - low) / median:.0%}",
        f"{results.profile.batch / median:.2f}",
        f"{results.flops / median / 1e9:,.0f}",
        f"{results.roofline_seconds / median:.0%}",
    )


def _phases(results: Results, each: Measurement) -> tuple[str, ...]:
    text, steps, vae, host = (each.phase_seconds[phase] for phase in PHASES)
    return each.name, *(f"{1e3 * seconds:,.1f}" for seconds in (text, steps, steps / results.steps, vae, host))


def _cost(each: Measurement) -> tuple[str, ...]:
    return (
        each.name,
        f"{each.first_seconds:.2f}",
        f"{each.host_bytes / 1e6:,.0f}",
        "-" if each.device_bytes is None else f"{each.device_bytes / 1e6:,.0f}",
        f"{each.install_bytes / 1e6:,.0f}",
        "-" if each.psnr is None else f"{each.psnr:.1f}",
    )


def tables(results: Results) -> list[Table]:
    """Return the tables for the terminal: all but the versions, which only the files have."""
    return [as_table(columns, each) for columns, each in rows(results).items() if columns != VERSION_COLUMNS]


def markdown(results: Results) -> str:
    """Return all tables in Markdown, with the reasons for what was not measured."""
    text = [f"{title(results)}.", *(as_markdown(columns, each) for columns, each in rows(results).items())]
    text += [f"Not measured: {name} ({reason})." for name, reason in sorted(results.not_measured.items())]
    return "\n\n".join(text) + "\n"


def title(results: Results, swept: str | None = None) -> str:
    """Return one line that says what was measured where, without ``swept`` (size, batch or steps), which varies."""
    profile, rounds = results.profile, len(results.baseline.warm_seconds)
    facts = {
        "size": f"{profile.width} x {profile.height} px",
        "batch": f"batch {profile.batch}",
        "steps": f"{results.steps} steps",
        "guidance": f"guidance {results.guidance_scale:g}",
        "runs": f"{rounds} runs each, {'one at a time' if results.alone else 'in turn'}",
    }
    where = results.machine.gpu or f"{results.machine.processor}, {results.machine.cores} cores"
    what = ", ".join(text for name, text in facts.items() if name != swept)
    return f"{what}; speed against {results.baseline.name}; {where}"


def as_table(columns: Sequence[str], rows: Rows) -> Table:
    """Return a table for the terminal, with figures aligned to the right."""
    shown = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    shown.columns[0].no_wrap = True
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        shown.add_row(*row)
    return shown


def as_markdown(columns: Sequence[str], rows: Rows) -> str:
    """Return a table in Markdown."""
    aligned = "|---" if columns == VERSION_COLUMNS else "|---:"
    lines = [f"| {' | '.join(columns)} |", f"|---{aligned * (len(columns) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def sweep_rows(swept: Sweep) -> list[tuple[str, ...]]:
    """Return the median milliseconds of a run, a row per backend, a column per value."""
    return [
        (name, *("-" if seconds is None else f"{1e3 * seconds:,.1f}" for seconds in medians))
        for name, medians in swept.medians().items()
    ]


def sweep_columns(swept: Sweep) -> tuple[str, ...]:
    """Return the column titles of a sweep's table."""
    return (f"ms by {swept.meaning}", *map(str, swept.values))


def sweep_markdown(swept: Sweep) -> str:
    """Return the table of a sweep in Markdown."""
    return f"{title(swept.results[0], swept.kind)}.\n\n{as_markdown(sweep_columns(swept), sweep_rows(swept))}\n"
