"""Plots: latency by phase, first picture and memory of every backend; and latency over the values of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from koala_bench.results import Results

if TYPE_CHECKING:
    from koala_bench.sweep import Sweep

_COLOURS = {"text": "#4c78a8", "steps": "#f58518", "vae": "#54a24b", "host": "#9d9d9d"}
_LINES = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#9d9d9d")
_MARKERS = "os^Dv*Xp"


def plot(results: Results, ending: str, *, dark: bool) -> bytes:
    """Return a bar chart of every backend; ``ending`` is ``png`` or ``svg``."""
    names = [each.name for each in results.measured]
    height = 1.8 + 0.45 * max(1, len(names))

    def draw(pyplot: Any) -> Any:
        figure, axes = pyplot.subplots(1, 3, figsize=(13, height), width_ratios=(5, 2.5, 2.5), sharey=True)
        left = [0.0] * len(names)
        for phase, seconds in results.phase_seconds().items():
            axes[0].barh(names, [1e3 * s for s in seconds], left=left, label=phase, color=_COLOURS[phase])
            left = [start + 1e3 * each for start, each in zip(left, seconds, strict=True)]
        _bars(axes[1], names, [each.first_seconds for each in results.measured], "{:.1f}")
        memory = [each.host_bytes if each.device_bytes is None else each.device_bytes for each in results.measured]
        _bars(axes[2], names, [nbytes / 1e6 for nbytes in memory], "{:,.0f}")
        for y, end in enumerate(left):
            axes[0].text(end, y, f" {end:,.0f}", va="center")
        axes[0].margins(x=0.12)
        axes[0].invert_yaxis()
        axes[0].set_xlabel("a warm run, median, ms")
        axes[1].set_xlabel("process start to first picture, s")
        axes[2].set_xlabel("peak memory, MB" + (" (GPU where there is one)" if results.machine.gpu else ""))
        figure.legend(loc="upper center", ncols=4, frameon=False)
        return figure

    return _render(draw, ending, dark, top=0.35 / height)


def plot_sweep(sweep: Sweep, ending: str, *, dark: bool) -> bytes:
    """Return a line chart of the median run of each backend over the values of a sweep."""

    def draw(pyplot: Any) -> Any:
        figure, axes = pyplot.subplots(figsize=(8, 4.8))
        for index, (name, medians) in enumerate(sweep.medians().items()):
            known = [(value, 1e3 * s) for value, s in zip(sweep.values, medians, strict=True) if s is not None]
            style = {"color": _LINES[index % len(_LINES)], "marker": _MARKERS[index % len(_MARKERS)]}
            axes.plot(*zip(*known, strict=True), label=name, **style)
        axes.set_xlabel(sweep.meaning)
        axes.set_ylabel("a warm run, median, ms")
        axes.set_xticks(sweep.values)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        return figure

    return _render(draw, ending, dark)


def plot_samplers(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], ending: str, *, dark: bool) -> bytes:
    """Return a panel of lines per quantity: (evaluations of the U-Net, value) by sampler.

    A panel begins below the worst sampler at the second of its numbers of steps; a first point can be far below.
    """

    def draw(pyplot: Any) -> Any:
        markers = _MARKERS + _MARKERS[1:]  # a period of their own, so that no two of many lines look alike
        names = [*dict.fromkeys(name for lines in panels.values() for name in lines)]
        figure, axes = pyplot.subplots(1, len(panels), figsize=(6.2 * len(panels), 5.4), squeeze=False, sharex=True)
        ticks: list[int] = []
        for x in sorted({x for lines in panels.values() for points in lines.values() for x, _ in points}):
            ticks += [x] if not ticks or x > 1.2 * ticks[-1] else []
        for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for name, points in lines.items():
                place = names.index(name)
                style = {"color": _LINES[place % len(_LINES)], "marker": markers[place % len(markers)]}
                axis.plot(*zip(*points, strict=True), label=name, markersize=5, linewidth=1.2, **style)
            axis.set_xscale("log")
            axis.set_xticks([], minor=True)
            axis.set_xticks(ticks, map(str, ticks))
            axis.set_xlabel("evaluations of the U-Net")
            axis.set_ylabel(title)
            axis.grid(alpha=0.25)
            top = axis.get_ylim()[1]
            least = min(points[min(1, len(points) - 1)][1] for points in lines.values())
            axis.set_ylim(bottom=max(axis.get_ylim()[0], least - 0.6 * (top - least)))
        known = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known.keys(), loc="upper center", ncols=6, frameon=False)
        return figure

    return _render(draw, ending, dark, top=0.1)


def _render(draw: Callable[[Any], Any], ending: str, dark: bool, top: float = 0.0) -> bytes:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style = "dark_background" if dark else "default"
    with pyplot.style.context(style), mpl.rc_context({"svg.hashsalt": "koala", "font.size": 10}):
        figure = draw(pyplot)
        for each in figure.axes:
            each.spines[["top", "right"]].set_visible(False)
        figure.tight_layout(rect=(0, 0, 1, 1 - top))
        stream = BytesIO()
        figure.savefig(stream, format=ending, dpi=144, metadata={"Date": None} if ending == "svg" else None)
        pyplot.close(figure)
    return stream.getvalue()


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], form: str) -> None:
    axis.barh(names, values, color="#72b7b2")
    for y, value in enumerate(values):
        axis.text(value, y, " " + form.format(value), va="center")
    axis.margins(x=0.25)
