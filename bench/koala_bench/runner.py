"""Measures backends side by side: each in a process of its own, one run each in turn.

Taking turns spreads drift of the machine (heat, other load) evenly over all backends. Separate processes give each
backend its own memory and cold start, and contain crashes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from koala_bench.backends.base import REFERENCE, Workload
from koala_bench.backends.registry import OWN_EXPORTERS, backend_problems, find_backend
from koala_bench.cost import picture_flops, roofline_seconds
from koala_bench.hardware import describe_machine, gpu_bytes_in_use, measure_peak
from koala_bench.processes import BackendProcesses
from koala_bench.results import SCHEMA_VERSION, Measurement, Peak, Results
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.manifest import Manifest, read_manifest
from koala_bundle.progress import Report, no_report
from koala_export.lora import read_loras
from koala_machine.driver import find_gpu, query_driver, query_uuid
from koala_verify.pixels import Pixels, psnr
from koala_verify.reference import check_loras

_ROOM = 0.9  # of the free GPU memory; the rest is for fragments, and for a desktop


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. ``steps`` and ``guidance_scale`` default to the bundle's; ``names`` to all that can run here.

    With ``reference``, diffusers draws in float32 once, as the reference for PSNR. ``alone`` loads one backend at a
    time; None does so if the GPU's memory does not hold all of them. ``pythons`` gives other interpreters, by backend.
    ``random_weights``: the source is a preset, whose shape gets random weights. ``device`` is the index or UUID of
    the GPU, None for the first; the backends see no other. ``loras`` are those that the bundle was exported with, each
    as ``FILE[:SCALE]``.
    """

    names: tuple[str, ...] | None = None
    prompt: str = "a large red circle on a white background"
    rounds: int = 20
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    reference: bool = True
    alone: bool | None = None
    random_weights: bool = False
    pythons: Mapping[str, str] = field(default_factory=dict)
    device: int | str | None = None
    loras: tuple[str, ...] = ()


def run(
    bundle: Path, source: str, options: BenchOptions, report: Report = no_report, scratch: Path | None = None
) -> Results:
    """Measure, and return the results. ``scratch`` keeps prepared files for later runs; None: a temporary folder.

    Raises InputError for wrong arguments, KoalaError if no backend can be measured. A backend that fails is listed in
    ``not_measured``.
    """
    if scratch is None:
        with TemporaryDirectory(prefix="koala-bench-") as folder:
            return run(bundle, source, options, report, Path(folder))
    manifest = read_manifest(bundle)
    if options.rounds < 2:
        raise ArgumentError("rounds", expected="2 or more", found=str(options.rounds), fix="pass 10 for a first look")
    if manifest.profile.prompt_chunks != 1:
        raise ArgumentError(
            "bundle",
            expected="one that reads one chunk of 77 tokens, as the other pipelines do",
            found=f"{manifest.profile.prompt_chunks} chunks",
            fix="export another with one chunk to compare",
        )
    check_loras(manifest, read_loras(options.loras))
    if options.device is not None:
        find_gpu(options.device)
    device = options.device or 0
    if options.random_weights:
        source = str(_random_checkpoint(source, manifest.profile.precision, scratch, report))
    workload = _workload(bundle, manifest, source, options, scratch)
    names, not_measured = _select(bundle, options)
    report("measuring the peak rates of this machine")
    peaks = [measure_peak(device)]
    processes = BackendProcesses(workload, options.pythons, report, query_uuid(device=device))
    try:
        alone = _measure(processes, names, options)
    finally:
        processes.kill()
    peaks.append(measure_peak(device))
    not_measured |= processes.crashed
    if not processes.finished:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_measured.items())
        raise KoalaError("the backends", expected="one that runs", found=reasons, fix="choose others")
    peak = _best(peaks)
    return Results(
        schema_version=SCHEMA_VERSION,
        command=tuple(sys.argv),
        machine=describe_machine(device),
        peak=peak,
        flops=picture_flops(manifest, workload.steps),
        roofline_seconds=roofline_seconds(manifest, workload.steps, peak),
        prompt=options.prompt,
        seed=options.seed,
        steps=workload.steps,
        guidance_scale=workload.guidance_scale,
        alone=alone,
        profile=manifest.profile,
        measured=_measurements(processes),
        not_measured=not_measured,
    )


def _workload(bundle: Path, manifest: Manifest, source: str, options: BenchOptions, scratch: Path) -> Workload:
    sampling = manifest.sampling
    return Workload(
        bundle=str(bundle),
        source=source,
        prompt=options.prompt,
        seed=options.seed,
        steps=sampling.num_inference_steps if options.steps is None else options.steps,
        guidance_scale=sampling.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        scratch=str(scratch),
        loras=options.loras,
    )


def _select(bundle: Path, options: BenchOptions) -> tuple[list[str], dict[str, str]]:
    """Return the backends to measure, and a reason for each one that cannot run here. Refuses unknown names."""
    problems = backend_problems(bundle, options.pythons, options.device or 0)
    if options.loras:
        problems |= dict.fromkeys(OWN_EXPORTERS, "it exports the checkpoint itself, without the bundle's LoRA")
    chosen = list(problems) if options.names is None else list(options.names)
    for name in chosen:
        if ":" not in name:
            find_backend(name)
    not_measured = {name: reason for name in chosen if (reason := problems.get(name))}
    return [name for name in chosen if name not in not_measured], not_measured


def _measure(processes: BackendProcesses, names: Sequence[str], options: BenchOptions) -> bool:
    """Measure, and return whether one backend was loaded at a time."""
    if options.reference:
        processes.start(REFERENCE)
        processes.kill()
    alone = options.alone if options.alone is not None else not _fit(processes, names, options.device or 0)
    # With ``alone``, each backend runs twice, for half of the rounds each, so that steady drift cancels out here too.
    halves = (options.rounds // 2, -(-options.rounds // 2))
    visits = [([name], half) for half in halves for name in names] if alone else [(names, options.rounds)]
    for group, rounds in visits:
        for name in group:
            processes.start(name)
        processes.draw(group, rounds)
        processes.finish(group)
    return alone


def _fit(processes: BackendProcesses, names: Sequence[str], device: int | str) -> bool:
    """Return whether the GPU's memory holds all backends at once, found out by loading one after the other."""
    in_use = gpu_bytes_in_use(processes.gpu)
    if in_use is None or len(names) < 2:
        return True
    room = _ROOM * (query_driver(device=device).memory_bytes - in_use)
    needed = processes.gpu_bytes(names)
    how = "side by side" if needed <= room else "one backend at a time"
    processes.report(f"{how}: together they take {needed / 1e9:.1f} of {room / 1e9:.1f} GB of GPU memory")
    return needed <= room


def _best(peaks: Sequence[Peak]) -> Peak:
    """Return the best of each rate: other load during one of the measurements makes its rates too low."""
    fastest = max(peaks, key=lambda peak: peak.flops_per_second)
    return replace(fastest, bytes_per_second=max(peak.bytes_per_second for peak in peaks))


def _measurements(processes: BackendProcesses) -> tuple[Measurement, ...]:
    reference = processes.pictures.get(REFERENCE)
    return tuple(_measurement(processes, name, answer, reference) for name, answer in processes.finished.items())


def _measurement(
    processes: BackendProcesses, name: str, answer: Mapping[str, Any], reference: Pixels | None
) -> Measurement:
    warm = processes.warm[name]
    phase_seconds = answer["phase_seconds"]  # of a single run; scaled to the median run
    scale = float(np.median(warm)) / sum(phase_seconds.values())
    return Measurement(
        name=name,
        cold_seconds=tuple(processes.cold[name]),
        warm_seconds=tuple(warm),
        phase_seconds={phase: seconds * scale for phase, seconds in phase_seconds.items()},
        host_bytes=answer["host_bytes"],
        device_bytes=answer["device_bytes"],
        install_bytes=answer["install_bytes"],
        versions=answer["versions"],
        psnr=None if reference is None else psnr(reference, processes.pictures[name], 255.0),
    )


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
