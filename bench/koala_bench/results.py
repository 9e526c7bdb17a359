"""What was measured, and every way to show it: JSON, tables for screen and README, plots, and what changed since."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from koala_bench.backends import PARTS
from koala_runtime.contract.codec import from_json
from koala_runtime.contract.errors import BundleError
from koala_runtime.contract.files import write_atomic, write_json
from koala_runtime.contract.spec import Profile

SCHEMA_VERSION = 1


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
    """One backend. Seconds and bytes; ``parts`` add up to the median picture; ``psnr`` against float32 PyTorch, dB."""

    name: str
    cold_seconds: float
    warm_seconds: tuple[float, ...]
    parts: dict[str, float]
    host_bytes: int
    device_bytes: int | None
    install_bytes: int
    psnr: float | None

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the warm pictures was drawn."""
        return float(np.quantile(self.warm_seconds, share))


@dataclass(frozen=True)
class Results:
    """The whole of results.json; ``flops`` of one picture as the checkpoint has them, ``missing`` with the reasons."""

    schema_version: int
    command: tuple[str, ...]
    machine: Machine
    flops: int
    peak: Peak
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    profile: Profile
    measured: tuple[Measured, ...]
    missing: dict[str, str]

    def of(self, name: str) -> Measured:
        """Return the backend called ``name``."""
        return next(each for each in self.measured if each.name == name)


COLUMNS = (
    *("backend", "cold, s", "p50, ms", "p90", "p99", "spread", "ms/step", "pictures/s", "memory, MB", "GPU, MB"),
    *("install, MB", "GFLOP/s", "of peak", "PSNR, dB"),
)


def rows(results: Results) -> list[tuple[str, ...]]:
    """Return the figures as text, a row per backend; all tables are made of these."""
    made = []
    for each in results.measured:
        median, low, high = (each.quantile(share) for share in (0.5, 0.1, 0.9))
        rate = results.flops / median
        made.append(
            (
                each.name,
                f"{each.cold_seconds:.2f}",
                *(f"{1e3 * each.quantile(share):.1f}" for share in (0.5, 0.9, 0.99)),
                f"{(high - low) / median:.0%}",
                f"{1e3 * each.parts['steps'] / results.steps:.2f}",
                f"{1 / median:.2f}",
                f"{each.host_bytes / 1e6:,.0f}",
                "-" if each.device_bytes is None else f"{each.device_bytes / 1e6:,.0f}",
                f"{each.install_bytes / 1e6:,.0f}",
                f"{rate / 1e9:,.0f}",
                f"{rate / results.peak.flops_per_second:.0%}",
                "-" if each.psnr is None else f"{each.psnr:.1f}",
            )
        )
    return made


def table(results: Results) -> Table:
    """Return the figures for the screen."""
    shown = Table(*COLUMNS, title=_title(results), title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows(results):
        shown.add_row(*row)
    return shown


def markdown(results: Results) -> str:
    """Return the figures for a README."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---{'|---:' * (len(COLUMNS) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    lines += [f"\nNot measured: {name} ({reason})." for name, reason in results.missing.items()]
    return f"{_title(results)}\n\n" + "\n".join(lines) + "\n"


def save(results: Results, folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.md`` and the plots, light and dark, to ``folder``."""
    from koala_bench.plot import plot

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    write_atomic(folder / "results.md", markdown(results).encode())
    made = [folder / "results.json", folder / "results.md"]
    for dark in (False, True):
        for ending in ("png", "svg"):
            path = folder / f"results{'-dark' if dark else ''}.{ending}"
            write_atomic(path, plot(results, ending, dark=dark))
            made.append(path)
    return made


def load(path: Path) -> Results:
    """Read ``results.json``. Raises BundleError for what is none."""
    try:
        return from_json(Results, json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BundleError(
            str(path), expected="results of `koala bench`", found=str(error), mend="measure again with `koala bench`"
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


def _title(results: Results) -> str:
    where = results.machine.gpu or f"{results.machine.processor}, {results.machine.cores} cores"
    profile = results.profile
    return (
        f"{profile.width} x {profile.height} px, {results.steps} steps, guidance {results.guidance_scale:g}, "
        f"{len(results.measured[0].warm_seconds) if results.measured else 0} pictures each, in turn; {where}"
    )


def parts_of(results: Results) -> dict[str, list[float]]:
    """Return the seconds of each part, in the order of ``measured``."""
    return {part: [each.parts[part] for each in results.measured] for part in PARTS}
