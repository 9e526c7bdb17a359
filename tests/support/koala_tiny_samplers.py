"""Samplers and steps on koala-tiny: ``python -m tests.support.koala_tiny_samplers BUNDLE FOLDER`` measures and plots.

300 prompts that training never showed, 150 for one thing and 150 for two, each judged by ``tests.support.judge``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from koala_bench.samplers import STEPS, measure, save, shown_progress
from koala_runtime import Pipeline
from koala_runtime.samplers.names import STEMS
from koala_tiny.scenes import words
from koala_verify.pixels import Pixels
from tests.support.judge import judge
from tests.support.koala_tiny import requests

FIRST = ("euler", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "euler_a", "heun", "deis", "dpmpp_2m_sde", "ddim")
KARRAS = ("dpmpp_2m_sde_karras", "unipc_karras")
FEW = (4, 6, 10)


def main(bundle: Path, folder: Path) -> None:
    """Measure those that people ask for at all steps, and the others at some."""
    wanted = [*requests(1, 150), *requests(2, 150)]
    others = [*(name for name in STEMS if name not in FIRST), *KARRAS]
    cells = [(name, steps) for steps in STEPS for name in FIRST]
    cells += [(name, steps) for steps in FEW for name in others]

    def is_right(index: int, picture: Pixels) -> bool:
        return all(judge(picture, wanted[index]).values())

    with Pipeline(bundle) as pipe, shown_progress() as report:
        study = measure(pipe, [words(each) for each in wanted], cells, folder, is_right, report)
    save(study, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
