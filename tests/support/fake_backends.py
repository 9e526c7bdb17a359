"""Backends of known speed, for ``koala bench``: named as ``tests.support.fake_backends:Name``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from koala_bench.backends.base import Workload
from koala_bundle.manifest import read_manifest

DELAY = 0.06  # seconds
STARTED = time.monotonic()


class Quick:
    packages = ("pillow",)
    delay = DELAY / 2

    def __init__(self, workload: Workload) -> None:
        profile = read_manifest(Path(workload.bundle)).profile
        self._shape = (profile.batch, profile.height, profile.width, 3)

    def draw(self) -> NDArray[np.uint8]:
        time.sleep(self.delay)
        return np.full(self._shape, 128, np.uint8)

    def phase_seconds(self) -> dict[str, float]:
        return {"text": self.delay / 8, "steps": self.delay / 2, "vae": self.delay / 4, "host": self.delay / 8}


class Slow(Quick):
    delay = DELAY


class Drifting(Quick):
    """On a machine that gets slower: twice as slow after a second, whoever draws. So is ``DriftingSlow``."""

    def draw(self) -> NDArray[np.uint8]:
        base = float(os.environ["KOALA_TEST_STARTED"])
        time.sleep(self.delay * (1 + (time.time() - base) / 2))
        return np.full(self._shape, 128, np.uint8)


class DriftingSlow(Drifting):
    delay = DELAY


class Crashing(Quick):
    """Draws twice."""

    left = 2

    def draw(self) -> NDArray[np.uint8]:
        if not self.left:
            print("the wheels came off", file=sys.stderr)
            os._exit(3)
        self.left -= 1
        return super().draw()


class Prepared(Quick):
    """Counts how often it was prepared, and takes long for it."""

    @staticmethod
    def prepare(workload: Workload) -> None:
        time.sleep(3)
        times = Path(workload.scratch) / "times"
        times.write_text(times.read_text() + "." if times.exists() else ".")


class Large(Quick):
    """Holds 200 MB, and did not inherit them."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._held = np.ones(200_000_000, np.uint8)


class PerStep(Quick):
    """Takes a delay for each step."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.delay = DELAY * workload.steps


class Seeing(Quick):
    """Writes down which GPUs it sees."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        Path(os.environ["KOALA_TEST_SEEN"]).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))


class Holding(Quick):
    """Holds 4 GB of GPU memory, says the nvidia-smi of ``test_gpu_facts``."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        (Path(os.environ["KOALA_TEST_HELD"]) / str(os.getpid())).write_text("4000")


class HoldingToo(Holding):
    pass
