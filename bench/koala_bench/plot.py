"""Latency by phase, cold start and memory of every backend, as one picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from koala_bench.results import Results, parts_of

COLOURS = {"text": "#4c78a8", "steps": "#f58518", "vae": "#54a24b", "host": "#9d9d9d"}


def plot(results: Results, ending: str, *, dark: bool) -> bytes:
    """Return the picture as ``png`` or ``svg``."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style = "dark_background" if dark else "default"
    with pyplot.style.context(style), mpl.rc_context({"svg.hashsalt": "koala", "font.size": 10}):
        names = [each.name for each in results.measured]
        height = 0.9 + 0.45 * max(1, len(names))
        figure, axes = pyplot.subplots(1, 3, figsize=(13, height + 0.9), width_ratios=(5, 2.5, 2.5), sharey=True)
        left = [0.0] * len(names)
        for part, seconds in parts_of(results).items():
            axes[0].barh(names, [1e3 * s for s in seconds], left=left, label=part, color=COLOURS[part])
            left = [start + 1e3 * each for start, each in zip(left, seconds, strict=True)]
        _bars(axes[1], names, [each.cold_seconds for each in results.measured], "{:.1f}")
        memory = [each.host_bytes if each.device_bytes is None else each.device_bytes for each in results.measured]
        _bars(axes[2], names, [nbytes / 1e6 for nbytes in memory], "{:,.0f}")
        for y, end in enumerate(left):
            axes[0].text(end, y, f" {end:,.0f}", va="center")
        axes[0].margins(x=0.12)
        axes[0].invert_yaxis()
        axes[0].set_xlabel("a warm picture, median, ms")
        axes[1].set_xlabel("process start to first picture, s")
        axes[2].set_xlabel("peak memory, MB" + (" (GPU where there is one)" if results.machine.gpu else ""))
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="upper center", ncols=4, frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (height + 0.9)))
        stream = BytesIO()
        figure.savefig(stream, format=ending, dpi=144, metadata={"Date": None} if ending == "svg" else None)
        pyplot.close(figure)
    return stream.getvalue()


def _bars(axis: Any, names: list[str], values: list[float], form: str) -> None:
    axis.barh(names, values, color="#72b7b2")
    for y, value in enumerate(values):
        axis.text(value, y, " " + form.format(value), va="center")
    axis.margins(x=0.25)
