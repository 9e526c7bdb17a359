"""What was measured: the schema of results.json, reading it, and what changed since another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koala_bench.backends import PARTS
from koala_bundle.codec import from_json
from koala_bundle.errors import BundleError
from koala_bundle.spec import Profile

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Peak:
    """The most this machine does: floating-point operations a second of a product in ``dtype``, bytes of a copy."""

    dtype: str
    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Machine:
    """Where it ran; ``driver`` is the CUDA version of the driver, ``clocks`` what nvidia-smi says."""

    processor: str
    cores: int
    system: str
    gpu: str | None
    driver: str | None
    clocks: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """One backend. Seconds of runs, which draw a batch; ``parts`` add up to the median run. Sizes in bytes.

    ``versions`` are those in its own process. ``psnr`` against float32 PyTorch, in decibels.
    """

    name: str
    cold_seconds: tuple[float, ...]
    warm_seconds: tuple[float, ...]
    parts: dict[str, float]
    host_bytes: int
    device_bytes: int | None
    install_bytes: int
    versions: dict[str, str]
    psnr: float | None

    @property
    def start(self) -> float:
        """Seconds from the start of the process to its first pictures, the median of all starts."""
        return float(np.median(self.cold_seconds))

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the warm pictures was drawn."""
        return float(np.quantile(self.warm_seconds, share))


@dataclass(frozen=True)
class Results:
    """The whole of results.json.

    ``flops`` of one run, and the ``least_seconds`` that they take at ``peak``, are of the checkpoint as it is;
    ``missing`` has the reasons.
    """

    schema_version: int
    command: tuple[str, ...]
    machine: Machine
    peak: Peak
    flops: int
    least_seconds: float
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    alone: bool
    profile: Profile
    measured: tuple[Measured, ...]
    missing: dict[str, str]

    def of(self, name: str) -> Measured:
        """Return the backend called ``name``."""
        return next(each for each in self.measured if each.name == name)

    @property
    def baseline(self) -> Measured:
        """What the others are held against: plain diffusers, or the first where it was not measured."""
        return next((each for each in self.measured if each.name == "diffusers"), self.measured[0])

    def speed(self, each: Measured) -> float:
        """How many times as fast as the baseline a backend is: the median ratio of runs of the same round."""
        pairs = zip(self.baseline.warm_seconds, each.warm_seconds, strict=False)
        return float(np.median([theirs / ours for theirs, ours in pairs]))

    def parts(self) -> dict[str, list[float]]:
        """Return the seconds of each part, in the order of ``measured``."""
        return {part: [each.parts[part] for each in self.measured] for part in PARTS}


def load(path: Path) -> Results:
    """Read ``results.json``. Raises BundleError for what is none."""
    try:
        return from_json(Results, json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BundleError(
            str(path), expected="results of `koala bench`", found=str(error), fix="measure again with `koala bench`"
        ) from None


def changes(before: Results, after: Results) -> list[tuple[str, str, str, str]]:
    """Return for each backend of both: name, median before and after in ms, and in words what that means.

    A change is real if the medians differ by more than both spreads between the tenth and ninetieth percentile.
    """
    told = []
    for each in after.measured:
        if each.name not in {old.name for old in before.measured}:
            continue
        old = before.of(each.name)
        medians = old.quantile(0.5), each.quantile(0.5)
        noise = max(one.quantile(0.9) - one.quantile(0.1) for one in (old, each))
        difference = medians[1] - medians[0]
        word = "within the noise"
        if abs(difference) > noise:
            ratio = medians[0] / medians[1]
            word = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
        told.append((each.name, f"{1e3 * medians[0]:.1f}", f"{1e3 * medians[1]:.1f}", word))
    return told
