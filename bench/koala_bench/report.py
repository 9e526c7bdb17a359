"""Results and sweeps as files: JSON, tables in Markdown, and plots, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from koala_bench.plot import plot, plot_sweep
from koala_bench.results import Results
from koala_bench.sweep import Sweep
from koala_bench.tables import markdown, sweep_markdown
from koala_bundle.files import write_atomic, write_json


def save(results: Results, folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.md`` and the plots, light and dark, to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "results.json", folder / "results.md"]
    write_json(made[0], results)
    write_atomic(made[1], markdown(results).encode())
    return made + write_plots(folder / "results", lambda ending, dark: plot(results, ending, dark=dark))


def write_plots(stem: Path, draw: Callable[[str, bool], bytes]) -> list[Path]:
    """Write what ``draw(ending, dark)`` returns to ``stem.png``, ``stem-dark.png`` and as SVG."""
    made = []
    for dark in (False, True):
        for ending in ("png", "svg"):
            made.append(stem.with_name(f"{stem.name}{'-dark' if dark else ''}.{ending}"))
            write_atomic(made[-1], draw(ending, dark))
    return made


def save_sweep(swept: Sweep, folder: Path) -> list[Path]:
    """Write ``sweep-KIND.json``, its table in Markdown and plots, light and dark, to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"sweep-{swept.kind}"
    made = [stem.with_suffix(".json"), stem.with_suffix(".md")]
    write_json(made[0], swept)
    write_atomic(made[1], sweep_markdown(swept).encode())
    return made + write_plots(stem, lambda ending, dark: plot_sweep(swept, ending, dark=dark))
