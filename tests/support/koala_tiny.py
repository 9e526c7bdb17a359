"""How well koala-tiny does: ``python -m tests.support.koala_tiny BUNDLE`` prints its figures and draws its sheets.

The prompts always name a pair of shape and colour that training never showed. The bundle is one with guidance, for
the cpu target.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from koala_runtime import Pipeline
from koala_tiny.scenes import Request, held_out_requests, words
from tests.support.judge import judge

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "koala-tiny"
CHECKPOINT = EXAMPLE / "checkpoint"
ATTRIBUTES = ("count", "shape", "colour", "size", "place", "relation", "background", "sharp")


@dataclass(frozen=True)
class Score:
    """How many pictures are right, and how many meet each attribute of those that ask for it."""

    right: int
    count: int
    met: Counter[str]
    asked: Counter[str]

    def share(self) -> float:
        """Return the share of pictures that are right."""
        return self.right / self.count


def requests(things: int, count: int) -> list[Request]:
    """Return the first ``count`` of a fixed list of requests for one thing or two."""
    return held_out_requests(Random(f"held out {things}"), count, things=things)


def picture(pipe: Pipeline, prompt: str, seed: int, **settings: Any) -> NDArray[np.uint8]:
    """Return one picture, uint8 [128, 128, 3]."""
    return np.asarray(pipe(prompt, seed=seed, **settings).images[0])


def score(pipe: Pipeline, wanted: list[Request], **settings: Any) -> Score:
    """Draw each request once, its place in the list the seed, and judge the pictures."""
    verdicts = [judge(picture(pipe, words(r), seed, **settings), r) for seed, r in enumerate(wanted)]
    met, asked = Counter[str](), Counter[str]()
    for verdict in verdicts:
        met.update(name for name, good in verdict.items() if good)
        asked.update([*verdict])
    return Score(sum(all(verdict.values()) for verdict in verdicts), len(wanted), met, asked)


def table(scores: dict[str, Score]) -> str:
    """Return a Markdown table: a row per attribute, a column per list of requests."""
    lines = ["| | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    lines.append("| **right in everything** | " + " | ".join(f"**{s.share():.1%}**" for s in scores.values()) + " |")
    for name in ATTRIBUTES:
        cells = (f"{s.met[name] / s.asked[name]:.1%}" if s.asked[name] else "" for s in scores.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(pictures: list[list[NDArray[np.uint8]]], rows: list[str], columns: list[str]) -> Image.Image:
    """Return the pictures in a grid with labels at the left and on top."""
    size, side, top, gap = pictures[0][0].shape[0], 110 if any(rows) else 0, 20, 4
    width, height = side + (size + gap) * len(pictures[0]), top + (size + gap) * len(pictures)
    image = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for row, (label, line) in enumerate(zip(rows, pictures, strict=True)):
        pen.text((4, top + row * (size + gap) + size / 2), label, "black", font, anchor="lm")
        for column, shown in enumerate(line):
            image.paste(Image.fromarray(shown), (side + column * (size + gap), top + row * (size + gap)))
    for column, label in enumerate(columns):
        pen.text((side + column * (size + gap) + size / 2, top / 2), label, "black", font, anchor="mm")
    return image


def main(bundle: Path) -> None:
    """Print the table; write ``samples.png`` and ``guidance.png`` next to the checkpoint."""
    with Pipeline(bundle) as pipe:
        singles, pairs = requests(1, 150), requests(2, 150)
        print(table({"one thing": score(pipe, singles), "two things": score(pipe, pairs)}))
        shown = [[picture(pipe, words(r), seed) for seed, r in enumerate(some[:8])] for some in (singles, pairs)]
        sheet(shown, ["", ""], []).save(EXAMPLE / "samples.png", optimize=True)
        wanted, guidances, steps = pairs[0], (1.0, 2.0, 3.5, 5.0, 6.0), (1, 2, 4, 7, 10, 25)
        rows = []
        for n in steps:
            settings = [{"guidance_scale": g, "num_inference_steps": n} for g in guidances]
            rows.append([picture(pipe, words(wanted), 0, **each) for each in settings])
        labels = [f"{n} step{'s' * (n > 1)}" for n in steps]
        sheet(rows, labels, [f"guidance {g:g}" for g in guidances]).save(EXAMPLE / "guidance.png", optimize=True)
        for g in guidances:
            some = score(pipe, [*singles[:25], *pairs[:25]], guidance_scale=g)
            print(f"guidance {g:g}: {some.share():.0%} of 50 right")
        for n in steps:
            some = score(pipe, [*singles[:25], *pairs[:25]], num_inference_steps=n)
            print(f"{n} steps: {some.share():.0%} of 50 right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
