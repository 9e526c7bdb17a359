"""Previews of koala-tiny: ``python -m tests.support.koala_tiny_previews BUNDLE PLAIN`` measures and draws a sheet.

BUNDLE has the preview decoder, PLAIN is the same without: its previews are those of the full decoder. Both are drawn in
turn, step by step, so that other load of the machine slows both.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from koala_runtime import Pipeline
from koala_tiny.scenes import words
from koala_verify.pixels import Pixels, psnr
from tests.support.koala_tiny import EXAMPLE, requests, sheet

STEPS, GUIDANCE = 10, 2.0
SHOWN = (1, 3, 5, 7, 8, 9, 10)


class Seen(NamedTuple):
    """The previews of a picture, the seconds of each, and of the whole."""

    previews: list[Pixels]
    seconds: list[float]
    whole: float


def look(pipe: Pipeline, prompt: str, seed: int, *, previews: bool = True) -> Seen:
    """Draw with a preview after every step, or none."""
    started, shown, seconds = time.perf_counter(), list[Pixels](), list[float]()
    with pipe.steps(prompt, seed=seed, num_inference_steps=STEPS, guidance_scale=GUIDANCE) as steps:
        for step in steps:
            if previews:
                before = time.perf_counter()
                shown.append(step.preview()[0])
                seconds.append(time.perf_counter() - before)
    return Seen(shown, seconds, time.perf_counter() - started)


def main(bundle: Path, plain: Path) -> None:
    """Print PSNR by step, and times; write ``previews.png`` next to the checkpoint."""
    prompts = [words(each) for each in (*requests(1, 20), *requests(2, 20))]
    found, rows = defaultdict[int, list[float]](list), list[list[Pixels]]()
    seconds, wholes = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with Pipeline(bundle) as tiny, Pipeline(plain) as full:
        for seed, prompt in enumerate(prompts):
            for name, pipe in (("full", full), ("preview", tiny), ("no", tiny)):
                seen = look(pipe, prompt, seed, previews=name != "no")
                seconds[name] += seen.seconds
                wholes[name].append(seen.whole)
                if name == "full":
                    wanted = seen.previews
                elif name == "preview":
                    for step, (one, other) in enumerate(zip(wanted, seen.previews, strict=True), 1):
                        found[step].append(psnr(one, other, 255.0))
                    if seed in (1, 21):
                        rows += [[each[step - 1] for step in SHOWN] for each in (wanted, seen.previews)]
    sheet(rows, ["full decoder", "preview"] * 2, [f"step {step}" for step in SHOWN]).save(
        EXAMPLE / "previews.png", optimize=True
    )
    for step, values in found.items():
        print(f"step {step}: PSNR {np.mean(values):.1f} dB, least {min(values):.1f}")
    for name in ("full", "preview"):
        print(f"{name} decoder: {_milliseconds(seconds[name])} a preview")
    for name, values in wholes.items():
        print(f"{name} decoder: {_milliseconds(values)} a picture of {STEPS} steps with a preview after each")


def _milliseconds(seconds: list[float]) -> str:
    """The least, because other load only adds to it; and the median."""
    return f"{1e3 * min(seconds):.1f} ms (median {1e3 * median(seconds):.1f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
