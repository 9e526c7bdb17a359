"""Several builds of one component, of which the fastest is kept: TensorRT's choice of kernels varies between builds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from koala_bundle.manifest import ComponentEntry
from koala_bundle.progress import Report
from koala_engines.compiler import Compiler, Measure

TUNED = ("denoiser", "vae_decoder")
"""Components that take nearly all of a picture's time."""


def fastest(
    compiler: Compiler,
    entry: ComponentEntry,
    source: Path,
    folder: Path,
    builds: int,
    measure: Measure,
    report: Report,
    progress: Callable[[float], None],
) -> tuple[list[Path], list[float]]:
    """Build ``source`` several times; return the files of the fastest in ``folder``, and all times, fastest first.

    Each build has a folder of its own, so that it searches anew instead of repeating a timing cache.
    """
    times: list[float] = []
    best: list[Path] = []
    for index in range(builds):
        trial = folder / f".{entry.name}.{index}"
        shutil.rmtree(trial, ignore_errors=True)
        trial.mkdir()

        def share(done: float, index: int = index) -> None:
            progress((index + done) / builds)

        paths = compiler.build(entry.name, source, trial, share)
        seconds = measure(compiler.target, entry, paths[0])
        report(f"{compiler.target}: {entry.name}: build {index + 1} of {builds} runs in {seconds * 1e3:.2f} ms")
        if not times or seconds < min(times):
            best = [path.replace(folder / path.name) for path in paths]
        shutil.rmtree(trial)
        times.append(seconds)
    return best, sorted(times)
