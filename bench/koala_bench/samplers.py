"""How good pictures are, by sampler and number of steps: ``python -m koala_bench.samplers BUNDLE FOLDER``.

A picture is compared with what the model draws of the same noise in many steps: the solution of the equation that every
sampler without noise of its own approximates. A sampler that draws noise has other pictures for its result; ``judge``
can say of any picture whether it is right.

Results are kept after every measurement, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rich.progress import Progress

from koala_bench.plot import plot_samplers
from koala_bench.report import write_plots
from koala_bench.tables import as_markdown
from koala_bundle.codec import from_json
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.files import write_atomic, write_json
from koala_runtime import Pipeline
from koala_runtime.samplers import Schedule, choose
from koala_verify.pixels import Pixels, psnr
from koala_verify.verify import PROMPTS

Cell: TypeAlias = tuple[str, int]
"""A sampler and a number of steps."""
Judge: TypeAlias = Callable[[int, Pixels], bool]
"""Says whether the picture of the prompt with this index is right."""
Report: TypeAlias = Callable[[str, float], None]
"""Is told what is drawn, and the share of it that is there."""
MANY: Cell = ("dpmpp_3m_karras", 100)
"""How the pictures are drawn that others are compared with.

100 steps without Karras' noise levels are too few: the last one jumps from the noise of the tenth timestep to none.
"""
OTHERS: tuple[Cell, ...] = (("unipc_karras", 100), ("dpmpp_2m", 400), ("euler", 400))
"""They show on ``FEW`` prompts that these have converged."""
COMPARED, FEW = 100, 8
STEPS = (4, 6, 8, 10, 15, 25)
SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "deis")
RESULTS, CONVERGED = "samplers.json", "converged.npz"


@dataclass(frozen=True)
class Figure:
    """``count`` pictures by a sampler in ``steps`` steps, which are ``rows`` evaluations of the U-Net.

    ``psnr``: median to the converged pictures, in decibels, None for samplers that draw noise. ``right``: the share
    that the judge calls right, None without one.
    """

    name: str
    steps: int
    rows: int
    count: int
    psnr: float | None
    right: float | None


@dataclass(frozen=True)
class Study:
    """``key``: digest of bundle, prompts and ``MANY``. ``converged``: the pictures that are compared with.

    ``agreement``: median PSNR between them and those of other samplers in many steps, in decibels.
    """

    key: str
    guidance_scale: float
    converged: str
    agreement: dict[str, float]
    figures: tuple[Figure, ...] = ()

    def figure(self, name: str, steps: int) -> Figure | None:
        """Return a measurement, None if there is none."""
        return next((each for each in self.figures if (each.name, each.steps) == (name, steps)), None)


def measure(
    pipe: Pipeline,
    prompts: Sequence[str],
    cells: Sequence[Cell],
    folder: Path,
    judge: Judge | None = None,
    report: Report = lambda what, share: None,
) -> Study:
    """Measure samplers and steps, and return all that ``folder`` has by then. A prompt's seed is its index.

    All prompts are drawn and judged; about ``COMPARED`` of them, evenly spread, are compared with converged pictures.

    Raises ArgumentError for a name that is no sampler, and for a folder with results of other bundles or prompts.
    """
    tables = {cell: choose(cell[0], pipe.scheduler).table(Schedule(cell[1])) for cell in cells}
    key = hashlib.sha256(json.dumps([pipe.digest, *prompts, MANY]).encode()).hexdigest()
    path, everything = folder / RESULTS, range(len(prompts))
    compared = everything[:: max(1, len(prompts) // COMPARED)]
    if not path.exists():
        write_json(path, _begin(pipe, prompts, compared, folder, key, report))
    study = load(path)
    if study.key != key:
        raise ArgumentError(
            str(folder),
            expected="results of this bundle and these prompts",
            found="results of others",
            fix="choose another folder",
        )
    with np.load(folder / CONVERGED) as data:
        converged = [*data["pictures"]]
    for index, (cell, table) in enumerate(tables.items()):
        if study.figure(*cell) is None:
            pictures = [*_draw(pipe, prompts, everything, cell, report, f"{index + 1} of {len(tables)}: ")]
            near = None if table.draws.any() else _median_psnr(converged, [pictures[each] for each in compared])
            right = judge and sum(judge(*each) for each in enumerate(pictures)) / len(pictures)
            figure = Figure(*cell, len(table.timesteps), len(pictures), near, right)
            study = replace(study, figures=(*study.figures, figure))
            write_json(path, study)
    return study


def load(path: Path) -> Study:
    """Read a study. Raises CodecError for JSON that is none."""
    return from_json(Study, json.loads(path.read_text(encoding="utf-8")))


def _begin(
    pipe: Pipeline, prompts: Sequence[str], compared: Sequence[int], folder: Path, key: str, report: Report
) -> Study:
    """Draw the converged pictures into ``folder``, and compare them with those of other samplers."""
    folder.mkdir(parents=True, exist_ok=True)
    converged, stream = [*_draw(pipe, prompts, compared, MANY, report)], BytesIO()
    np.savez_compressed(stream, pictures=np.stack(converged))
    write_atomic(folder / CONVERGED, stream.getvalue())
    few, agreement = compared[:FEW], {}
    for cell in OTHERS:
        agreement[_words(cell)] = _median_psnr(converged[:FEW], _draw(pipe, prompts, few, cell, report))
    return Study(key, pipe.manifest.sampling.guidance_scale, f"{len(converged)} by {_words(MANY)}", agreement)


def _draw(
    pipe: Pipeline, prompts: Sequence[str], chosen: Sequence[int], cell: Cell, report: Report, prefix: str = ""
) -> Iterator[Pixels]:
    """Yield a picture of each chosen prompt, of the noise of the seed that is its index whatever the batch."""
    batch, (name, steps) = pipe.manifest.profile.batch, cell
    for start in range(0, len(chosen), batch):
        report(prefix + _words(cell), start / len(chosen))
        seeds = [*chosen[start : start + batch]]
        some = [prompts[each] for each in seeds]
        yield from map(np.asarray, pipe(some, seed=seeds, num_inference_steps=steps, scheduler=name).images)


def _words(cell: Cell) -> str:
    return f"{cell[0]}, {cell[1]} steps"


def _median_psnr(references: Iterable[Pixels], pictures: Iterable[Pixels]) -> float:
    return round(statistics.median(psnr(a, b, 255.0) for a, b in zip(references, pictures, strict=True)), 2)


def save(study: Study, folder: Path) -> list[Path]:
    """Write ``results.md`` and plots, light and dark, to ``folder``.

    A line is drawn for samplers that were measured at more than half of the numbers of steps.
    """
    write_atomic(folder / "results.md", markdown(study).encode())
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for title, key, unit in _PANELS:
        for figure in sorted(study.figures, key=lambda each: each.rows):
            value: float | None = getattr(figure, key)
            if value is not None:
                panels.setdefault(title, {}).setdefault(figure.name, []).append((figure.rows, unit * value))
    half = len({each.steps for each in study.figures}) / 2
    lines = {title: {name: each for name, each in panel.items() if len(each) > half} for title, panel in panels.items()}
    plots = write_plots(folder / "results", lambda ending, dark: plot_samplers(lines, ending, dark=dark))
    return [folder / "results.md", *plots]


_PANELS = (("PSNR to the converged picture, dB", "psnr", 1), ("right pictures, %", "right", 100))


def markdown(study: Study) -> str:
    """Return a table for each quantity: a row per sampler, a column per number of steps."""
    steps, tables = sorted({each.steps for each in study.figures}), []
    for title, key, unit in _PANELS:
        known = {(each.name, each.steps): getattr(each, key) for each in study.figures}
        shown = {cell: f"{unit * value:.1f}" for cell, value in known.items() if value is not None}
        rows = [
            (f"`{name}`", *(shown.get((name, each), "") for each in steps))
            for name in dict.fromkeys(n for n, _ in shown)
        ]
        if rows:
            tables.append(as_markdown((f"{title}, by steps", *map(str, steps)), rows))
    return "\n\n".join(tables) + "\n"


@contextmanager
def shown_progress() -> Iterator[Report]:
    """Show a bar for what is drawn."""
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def make_parser() -> argparse.ArgumentParser:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description="Compare samplers and numbers of steps on a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="where results, tables and plots go; a later run goes on there")
    parser.add_argument("--prompts", type=Path, help="a text file with one prompt per line; default: three")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), metavar="NAME,NAME", help="default: %(default)s")
    parser.add_argument(
        "--steps", default=",".join(map(str, STEPS)), type=_numbers, metavar="N,N", help="default: %(default)s"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a bundle with some prompts, and write the tables and plots."""
    options = make_parser().parse_args(arguments)
    try:
        prompts = options.prompts.read_text(encoding="utf-8").splitlines() if options.prompts else PROMPTS
        cells = [(name, steps) for steps in options.steps for name in options.samplers.split(",")]
        with Pipeline(options.bundle) as pipe, shown_progress() as report:
            study = measure(pipe, [each for each in prompts if each], cells, options.folder, report=report)
    except (KoalaError, OSError) as error:
        sys.exit(str(error))
    print(*save(study, options.folder), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
