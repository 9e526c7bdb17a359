"""Measures the same over several numbers of steps, batches or sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from koala_bench.results import SCHEMA_VERSION, Results
from koala_bench.runner import BenchOptions, run
from koala_bundle.engine_record import engine_variants
from koala_bundle.manifest import read_manifest
from koala_bundle.progress import Report, no_report
from koala_bundle.targets import TARGETS

MEANINGS = {"steps": "denoising steps", "batch": "pictures per run", "size": "height and width, pixels"}


@dataclass(frozen=True)
class Sweep:
    """``results[i]`` were measured at ``values[i]`` of ``kind``, a key of MEANINGS."""

    schema_version: int
    kind: str
    values: tuple[int, ...]
    results: tuple[Results, ...]

    @property
    def meaning(self) -> str:
        """The title of the values."""
        return MEANINGS[self.kind]

    def medians(self) -> dict[str, list[float | None]]:
        """Return the median seconds of a run at each value, by backend; None where it was not measured."""
        found = [{each.name: each.quantile(0.5) for each in results.measured} for results in self.results]
        names = dict.fromkeys(name for medians in found for name in medians)
        return {name: [medians.get(name) for medians in found] for name in names}


def sweep(
    kind: str, values: Sequence[int], bundle: Path, source: str, options: BenchOptions, report: Report = no_report
) -> Sweep:
    """Measure at each value. For batches and sizes, export and build a variant of ``bundle`` for each value first.

    Raises as ``run`` does.
    """
    with TemporaryDirectory(prefix="koala-sweep-") as folder:
        scratch, results = Path(folder), []
        for value in values:
            report(f"{MEANINGS[kind]}: {value}")
            if kind == "steps":
                results.append(run(bundle, source, replace(options, steps=value), report, scratch))
                continue
            variant = _variant(kind, value, bundle, source, options, scratch, report)
            results.append(run(variant, source, options, report, scratch))
        return Sweep(SCHEMA_VERSION, kind, tuple(values), tuple(results))


def _variant(
    kind: str, value: int, bundle: Path, source: str, bench: BenchOptions, scratch: Path, report: Report
) -> Path:
    """Export a copy of ``bundle`` with another batch or size, build engines for the same targets, return its path."""
    from koala_engines.build import build_engines
    from koala_engines.options import BuildOptions
    from koala_export.exporter import export_bundle
    from koala_export.options import options_of

    options = replace(
        options_of(read_manifest(bundle)), random_weights=bench.random_weights, gate=False, loras=bench.loras
    )
    wanted = replace(options, batch=value) if kind == "batch" else replace(options, height=value, width=value)
    path = scratch / f"{kind}-{value}"
    export_bundle(source, path, wanted, report)
    for target in TARGETS:
        if engine_variants(bundle, target):
            build_engines(path, target, BuildOptions(device=bench.device), report)
    return path
