"""The schema of results.json, reading it, and comparing two of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koala_bench.backends.base import PHASES
from koala_bundle.codec import from_json
from koala_bundle.errors import InputError
from koala_bundle.spec import Profile

SCHEMA_VERSION = 4


class ResultsError(InputError):
    """A file is not a results.json of this version."""


@dataclass(frozen=True)
class Peak:
    """Rates measured on this machine: a matrix product in ``dtype``, and a copy (bytes read plus written).

    ``accumulator`` is the dtype in which the product adds up: on a GPU, that of the faster one.
    """

    dtype: str
    accumulator: str
    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Machine:
    """Hardware and software; ``driver`` is the CUDA version that the driver supports, ``clocks`` nvidia-smi's,
    with its version."""

    processor: str
    cores: int
    system: str
    gpu: str | None
    driver: str | None
    clocks: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement:
    """One backend. A run draws one batch, and ``phase_seconds`` add up to the median of ``warm_seconds``.

    ``host_bytes`` and ``device_bytes`` are peak memory; ``install_bytes`` is the size on disk of its packages.
    ``versions`` are those of its own environment; ``psnr`` is against diffusers in float32, in decibels.
    """

    name: str
    cold_seconds: tuple[float, ...]
    warm_seconds: tuple[float, ...]
    phase_seconds: dict[str, float]
    host_bytes: int
    device_bytes: int | None
    install_bytes: int
    versions: dict[str, str]
    psnr: float | None

    @property
    def first_seconds(self) -> float:
        """Seconds from the start of the process to its first pictures, the median of all starts."""
        return float(np.median(self.cold_seconds))

    def quantile(self, probability: float) -> float:
        """Return a quantile of ``warm_seconds``; 0.5 is the median."""
        return float(np.quantile(self.warm_seconds, probability))


@dataclass(frozen=True)
class Results:
    """The whole of results.json.

    ``flops`` and ``roofline_seconds`` are the operations of one run and the least time they take at ``peak``, for the
    checkpoint before any pass. ``not_measured`` gives a reason for each backend without a measurement.
    """

    schema_version: int
    command: tuple[str, ...]
    machine: Machine
    peak: Peak
    flops: int
    roofline_seconds: float
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    alone: bool
    profile: Profile
    measured: tuple[Measurement, ...]
    not_measured: dict[str, str]

    def of(self, name: str) -> Measurement:
        """Return the measurement of the backend ``name``."""
        return next(each for each in self.measured if each.name == name)

    @property
    def baseline(self) -> Measurement:
        """The backend that speeds are relative to: diffusers, or the first one if diffusers was not measured."""
        return next((each for each in self.measured if each.name == "diffusers"), self.measured[0])

    def speedup(self, measurement: Measurement) -> float:
        """Return how many times as fast as the baseline a backend is: the median ratio of runs of the same round."""
        pairs = zip(self.baseline.warm_seconds, measurement.warm_seconds, strict=False)
        return float(np.median([baseline / seconds for baseline, seconds in pairs]))

    def phase_seconds(self) -> dict[str, list[float]]:
        """Return the seconds of each phase, in the order of ``measured``."""
        return {phase: [each.phase_seconds[phase] for each in self.measured] for phase in PHASES}


def load(path: Path) -> Results:
    """Read a results.json. Raises ResultsError if the file cannot be read or is not one of this version."""
    try:
        found = json.loads(path.read_bytes())
        if found["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {found['schema_version']}")
        return from_json(Results, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(
            str(path),
            expected=f"a results.json of `koala bench`, schema version {SCHEMA_VERSION}",
            found=str(error),
            fix="measure again with `koala bench`",
        ) from None


def changes(before: Results, after: Results) -> list[tuple[str, str, str, str]]:
    """Return the name, both medians in ms and a verdict for each backend in both results.

    A change is real if the medians differ by more than the larger of the two spreads, from the tenth to the ninetieth
    percentile.
    """
    rows = []
    for new in after.measured:
        if new.name not in {each.name for each in before.measured}:
            continue
        old = before.of(new.name)
        old_median, new_median = old.quantile(0.5), new.quantile(0.5)
        noise = max(each.quantile(0.9) - each.quantile(0.1) for each in (old, new))
        verdict = "within the noise"
        if abs(new_median - old_median) > noise:
            ratio = old_median / new_median
            verdict = f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"
        rows.append((new.name, f"{1e3 * old_median:.1f}", f"{1e3 * new_median:.1f}", verdict))
    return rows
