"""How good pictures are, by sampler and number of steps: ``python -m koala_bench.samplers BUNDLE FOLDER``.

A picture is compared with what the model draws of the same noise in many steps: the exact solution of the equation that
every sampler without noise of its own approximates. Samplers that draw noise have no such picture; ``judge`` can say of
any picture whether it is right.

Writes ``results.json`` after every measurement and goes on where it stopped; at the end a plot and tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from koala_bench.plot import plot_samplers
from koala_bundle.codec import from_json
from koala_bundle.files import write_atomic, write_json
from koala_runtime import Pipeline
from koala_runtime.samplers import Schedule, choose
from koala_verify.pixels import Pixels, psnr
from koala_verify.verify import PROMPTS

Judge = Callable[[int, Pixels], bool]
"""Says whether the picture of the prompt with this index is right."""
RESULTS, CONVERGED = "results.json", "converged.npz"
MANY = ("dpmpp_3m", 60)
"""Sampler and steps of the pictures that others are compared with; ``OTHER_MANY`` shows that they have converged."""
OTHER_MANY = ("unipc", 60)
STEPS = (4, 6, 8, 10, 15, 25)


@dataclass(frozen=True)
class Figure:
    """``count`` pictures by a sampler in ``steps`` steps, which are ``rows`` evaluations of the U-Net.

    ``psnr``: the median over pictures, in decibels to the converged ones, None for samplers that draw noise. ``right``:
    the share that the judge calls right, None without one.
    """

    name: str
    steps: int
    rows: int
    count: int
    psnr: float | None
    right: float | None


@dataclass(frozen=True)
class Study:
    """``agreement``: median PSNR between both ways to converge; ``converged_right``: the share of right pictures."""

    bundle: str
    guidance_scale: float
    converged: str
    agreement: float
    converged_right: float | None
    figures: tuple[Figure, ...] = field(default=())

    def figure(self, name: str, steps: int) -> Figure | None:
        """Return a measurement, None if there is none."""
        return next((each for each in self.figures if (each.name, each.steps) == (name, steps)), None)


def measure(
    pipe: Pipeline,
    prompts: Sequence[str],
    cells: Sequence[tuple[str, int]],
    folder: Path,
    judge: Judge | None = None,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> Study:
    """Measure samplers and steps, and return all that ``folder`` has by then. A prompt's seed is its index.

    Raises ArgumentError for a name that is no sampler.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    converged = _converged(pipe, prompts, folder, report)
    if path.exists():
        study = from_json(Study, json.loads(path.read_text(encoding="utf-8")))
    else:
        few = prompts[:40]
        others = _draw(pipe, few, *OTHER_MANY)
        agreement = statistics.median(psnr(a, b, 255.0) for a, b in zip(converged, others, strict=False))
        guidance, right = pipe.manifest.sampling.guidance_scale, _right(converged, judge)
        study = Study(pipe.digest, guidance, f"{MANY[0]}, {MANY[1]} steps", agreement, right)
        write_json(path, study)
    for done, (name, steps) in enumerate(cells):
        report(f"{name}, {steps} steps", done / len(cells))
        if study.figure(name, steps) is None:
            figure = _measure(pipe, prompts, name, steps, converged, judge)
            study = Study(**{**vars(study), "figures": (*study.figures, figure)})
            write_json(path, study)
    return study


def _measure(
    pipe: Pipeline, prompts: Sequence[str], name: str, steps: int, converged: Sequence[Pixels], judge: Judge | None
) -> Figure:
    table = choose(name, pipe.scheduler).table(Schedule(steps))
    pictures = [*_draw(pipe, prompts, name, steps)]
    near = statistics.median(psnr(wanted, got, 255.0) for wanted, got in zip(converged, pictures, strict=True))
    exact = None if table.draws.any() else round(near, 2)
    return Figure(name, steps, len(table.timesteps), len(pictures), exact, _right(pictures, judge))


def _right(pictures: Sequence[Pixels], judge: Judge | None) -> float | None:
    return None if judge is None else sum(judge(*each) for each in enumerate(pictures)) / len(pictures)


def _converged(
    pipe: Pipeline, prompts: Sequence[str], folder: Path, report: Callable[[str, float], None]
) -> Sequence[Pixels]:
    path = folder / CONVERGED
    if not path.exists():
        report("converged pictures", 0.0)
        np.savez_compressed(path, pictures=np.stack([*_draw(pipe, prompts, *MANY)]))
    with np.load(path) as data:
        return list(data["pictures"][: len(prompts)])


def _draw(pipe: Pipeline, prompts: Sequence[str], name: str, steps: int) -> Iterator[Pixels]:
    """Yield a picture of each prompt, of the noise of the seed that is its index whatever the batch."""
    batch = pipe.manifest.profile.batch
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        seeds = [*range(start, start + len(some))]
        yield from map(np.asarray, pipe(some, seed=seeds, num_inference_steps=steps, scheduler=name).images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a bundle with some prompts and draw the plots."""
    parser = argparse.ArgumentParser(description="Compare samplers and numbers of steps on a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="where the results and plots go; a later run goes on there")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line")
    parser.add_argument("--samplers", default="euler,dpmpp_2m,dpmpp_2m_karras,unipc,deis,ddim", metavar="NAME,NAME")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), metavar="N,N")
    options = parser.parse_args(arguments)
    prompts = options.prompts.read_text(encoding="utf-8").splitlines() if options.prompts else [*PROMPTS]
    names, steps = options.samplers.split(","), [int(each) for each in options.steps.split(",")]
    with Progress() as progress, Pipeline(options.bundle) as pipe:
        task = progress.add_task("", total=1.0)

        def show(what: str, share: float) -> None:
            progress.update(task, description=what, completed=share)

        study = measure(
            pipe, prompts, [(name, count) for count in steps for name in names], options.folder, report=show
        )
    write_report(study, options.folder)


def write_report(study: Study, folder: Path) -> None:
    """Write ``results.md``, and plots as PNG and SVG for light and dark pages."""
    write_atomic(folder / "results.md", markdown(study).encode())
    for dark, ending in product((False, True), ("png", "svg")):
        write_atomic(folder / f"results{'-dark' * dark}.{ending}", plot_samplers(_lines(study), ending, dark=dark))


def markdown(study: Study) -> str:
    """Return a table of each quantity: a row per sampler, a column per number of steps."""
    names = [*dict.fromkeys(each.name for each in study.figures)]
    steps = sorted({each.steps for each in study.figures})
    parts = []
    for title, key, form in (
        ("PSNR to the converged picture, dB", "psnr", "{:.1f}"),
        ("right pictures", "right", "{:.1%}"),
    ):
        rows = {name: [getattr(study.figure(name, count), key, None) for count in steps] for name in names}
        shown = {name: values for name, values in rows.items() if any(value is not None for value in values)}
        if shown:
            parts.append(f"| {title} | " + " | ".join(f"{count} steps" for count in steps) + " |")
            parts.append("|---|" + "---:|" * len(steps))
            for name, values in shown.items():
                cells = ("" if value is None else form.format(value) for value in values)
                parts.append(f"| `{name}` | " + " | ".join(cells) + " |")
            parts.append("")
    return "\n".join(parts)


def _lines(study: Study) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the lines of each panel: (evaluations, value) by sampler."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for title, key in (("PSNR to the converged picture, dB", "psnr"), ("right pictures, %", "right")):
        for figure in sorted(study.figures, key=lambda each: each.rows):
            value: Any = getattr(figure, key)
            if value is not None:
                shown = 100 * value if key == "right" else value
                panels.setdefault(title, {}).setdefault(figure.name, []).append((figure.rows, shown))
    return panels


if __name__ == "__main__":
    main()
