"""Measures backends side by side: each in a process of its own, one run each in turn.

Interleaving lets a machine that drifts (heat, neighbours) hurt all alike; a process of its own makes memory and cold
starts honest, and a crash its own affair.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from koala_bench.backends import REFERENCE, Work
from koala_bench.hardware import describe, roofline
from koala_bench.processes import Processes
from koala_bench.registry import available, find
from koala_bench.results import SCHEMA_VERSION, Measured, Peak, Results
from koala_bundle.counts import Counts, Roofline
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.manifest import Manifest, read_manifest
from koala_bundle.progress import Report, no_report
from koala_runtime.program import DENOISER
from koala_verify.pixels import psnr


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. None: as the bundle has it; ``names`` None: everything that can run here.

    With ``reference`` float32 PyTorch draws the pictures once, for the others to be compared with. ``alone`` loads one
    backend at a time, for where they do not fit side by side.
    ``pythons`` are interpreters, by backend, other than this one. ``random_weights``: the source is a preset's shape.
    """

    names: tuple[str, ...] | None = None
    prompt: str = "a large red circle on a white background"
    rounds: int = 20
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    reference: bool = True
    alone: bool = False
    random_weights: bool = False
    pythons: Mapping[str, str] = field(default_factory=dict)


def run(
    bundle: Path, source: str, options: BenchOptions, report: Report = no_report, scratch: Path | None = None
) -> Results:
    """Measure; ``scratch`` keeps what is prepared for several runs, and is a temporary folder if there is none.

    Raises InputError for what the caller can fix. A backend that fails is in the results with the reason.
    """
    if scratch is None:
        with TemporaryDirectory(prefix="koala-bench-") as folder:
            return run(bundle, source, options, report, Path(folder))
    manifest = read_manifest(bundle)
    if options.rounds < 2:
        raise ArgumentError("rounds", expected="2 or more", found=str(options.rounds), fix="pass 10 for a first look")
    if options.random_weights:
        source = str(_random_checkpoint(source, manifest.profile.precision, scratch, report))
    sampling = manifest.sampling
    work = Work(
        str(bundle),
        source,
        options.prompt,
        options.seed,
        sampling.num_inference_steps if options.steps is None else options.steps,
        sampling.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        str(scratch),
    )
    problems = available(bundle, [*options.pythons])
    chosen = [*problems] if options.names is None else [*options.names]
    for name in chosen:
        if ":" not in name:
            find(name)  # an unknown name is told now
    missing = {name: reason for name in chosen if (reason := problems.get(name))}
    present = [name for name in chosen if name not in missing]
    report("measuring what the machine can do")
    peaks = [roofline()]
    backends = Processes(work, options.pythons, report)
    try:
        if options.reference:
            backends.start(REFERENCE)
            backends.stop()
        # One at a time, each comes twice, for half of the rounds: so what drifts evenly cancels here, too.
        visits = [([name], half) for half in (options.rounds // 2, -(-options.rounds // 2)) for name in present]
        for names, rounds in visits if options.alone else [(present, options.rounds)]:
            for name in names:
                backends.start(name)
            backends.draw(names, rounds)
            backends.finish(names)
    finally:
        backends.stop()
    peaks.append(roofline())
    # A machine that was busy at one end would be told to do less than it can.
    rates = (max(p.flops_per_second for p in peaks), max(p.bytes_per_second for p in peaks))
    peak = Peak(peaks[0].dtype, *rates)
    missing |= backends.failed
    if not backends.told:
        told = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise KoalaError("the backends", expected="one that runs", found=told, fix="choose others")
    wanted = backends.pictures.get(REFERENCE)
    measured = [
        Measured(
            name=name,
            cold_seconds=tuple(backends.cold[name]),
            warm_seconds=tuple(backends.warm[name]),
            parts=_scaled(told["parts"], float(np.median(backends.warm[name]))),
            host_bytes=told["host_bytes"],
            device_bytes=told["device_bytes"],
            install_bytes=told["install_bytes"],
            versions=told["versions"],
            psnr=None if wanted is None else psnr(wanted, backends.pictures[name], 255.0),
        )
        for name, told in backends.told.items()
    ]
    return Results(
        schema_version=SCHEMA_VERSION,
        command=tuple(sys.argv),
        machine=describe(),
        peak=peak,
        flops=picture_flops(manifest, work.steps),
        least_seconds=least_seconds(manifest, work.steps, peak),
        prompt=options.prompt,
        seed=options.seed,
        steps=work.steps,
        guidance_scale=work.guidance_scale,
        alone=options.alone,
        profile=manifest.profile,
        measured=tuple(measured),
        missing=missing,
    )


def picture_flops(manifest: Manifest, steps: int) -> int:
    """Operations of one run as it was traced, before any pass: the same work for every backend."""
    return sum(times * counts.flops for counts, times in _traced_runs(manifest, steps))


def least_seconds(manifest: Manifest, steps: int, peak: Peak) -> float:
    """Return the least time of one run on a machine of ``peak``, as it was traced: the roofline."""
    # Bytes are counted in the bundle's precision; on a processor all compute in float32.
    widened = 2 if manifest.profile.precision == "fp16" and peak.dtype == "float32" else 1
    machine = Roofline("this machine", peak.flops_per_second, peak.bytes_per_second / widened)
    return sum(times * counts.roofline_seconds(machine) for counts, times in _traced_runs(manifest, steps))


def _traced_runs(manifest: Manifest, steps: int) -> list[tuple[Counts, int]]:
    """Return the counts of each component as it was traced, and how often a picture runs it."""
    return [(counts, steps if name == DENOISER else 1) for name, counts in manifest.traced.items()]


def _scaled(parts: dict[str, float], median: float) -> dict[str, float]:
    """Scale the parts of one run, whatever that took, to the median run."""
    whole = sum(parts.values())
    return {name: seconds * median / whole for name, seconds in parts.items()}


def _random_checkpoint(preset: str, precision: str, scratch: Path, report: Report) -> Path:
    from koala_export.random_weights import RandomCheckpoint
    from koala_export.source import open_source

    folder = scratch / "random-weights"
    if not folder.exists():
        report(f"{preset}: random weights")
        checkpoint = open_source(preset, random_weights=True, precision=precision)
        assert isinstance(checkpoint, RandomCheckpoint)
        checkpoint.save(folder, precision)
    return folder
