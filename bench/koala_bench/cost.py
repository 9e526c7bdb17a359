"""What a picture costs in theory: its operations, and the least time they take on a machine."""

from __future__ import annotations

from koala_bench.results import Peak
from koala_bundle.counts import Counts, Roofline
from koala_bundle.manifest import Manifest
from koala_runtime.program import DENOISER, VAE_ENCODER
from koala_runtime.samplers import default_table


def picture_flops(manifest: Manifest, steps: int) -> int:
    """Return the operations of one run as it was traced, before any pass: the same work for every backend."""
    return sum(times * counts.flops for counts, times in _traced_runs(manifest, steps))


def roofline_seconds(manifest: Manifest, steps: int, peak: Peak) -> float:
    """Return the least time of one run, as it was traced, on a machine with the rates of ``peak``."""
    # Bytes are counted in the bundle's precision, but a CPU computes in float32.
    widened = 2 if manifest.profile.precision == "fp16" and peak.dtype == "float32" else 1
    machine = Roofline("this machine", peak.flops_per_second, peak.bytes_per_second / widened)
    return sum(times * counts.roofline_seconds(machine) for counts, times in _traced_runs(manifest, steps))


def _traced_runs(manifest: Manifest, steps: int) -> list[tuple[Counts, int]]:
    """Return the counts of each traced component, and how often a picture from noise runs it."""
    runs = {DENOISER: len(default_table(manifest, steps).timesteps), VAE_ENCODER: 0}
    return [(counts, runs.get(name, 1)) for name, counts in manifest.traced.items()]
