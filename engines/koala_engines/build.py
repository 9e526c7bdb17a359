"""All plans of a bundle for one target: decide, build beside the old ones, swap in.

A plan whose ONNX files and key are unchanged is kept. A build that is killed keeps its finished plans and resumes
after them; one that fails leaves the old engines.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from filelock import FileLock

from koala_bundle.checked import check_files_once
from koala_bundle.codec import to_json
from koala_bundle.engine_record import (
    ENGINE_RECORD,
    EngineRecord,
    PlanEntry,
    engine_folder,
    read_engine_record,
)
from koala_bundle.errors import ArgumentError, BuildError, BundleError, KoalaError
from koala_bundle.files import FileEntry, check_files, link, write_sealed
from koala_bundle.manifest import SCHEMA_VERSION, ComponentEntry, Manifest, read_manifest
from koala_bundle.onnx_locations import check_locations
from koala_bundle.places import refuse_link_out
from koala_bundle.progress import Progress, Report, no_progress, no_report
from koala_bundle.swap import Staging, prepare_output, real_path, whole
from koala_bundle.targets import Target
from koala_engines.compiler import Compiler, Measure
from koala_engines.opening import open_compiler
from koala_engines.options import BuildOptions
from koala_engines.tuning import TUNED, fastest
from koala_machine.driver import current_gpu


@dataclass
class _Build:
    """One call of ``build_engines``: what it works with, and the plans of the old engines that are still right."""

    bundle: Path
    compiler: Compiler
    manifest: Manifest
    options: BuildOptions
    report: Report
    progress: Progress
    measure: Measure | None
    kept: dict[str, PlanEntry] = field(default_factory=dict)
    kept_files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        return self.compiler.target

    @property
    def folder(self) -> Path:
        return real_path(engine_folder(self.bundle, self.target, self.compiler.variant))

    def onnx(self, entry: ComponentEntry) -> dict[str, str]:
        """SHA-256 by path of the ONNX files of a component."""
        return {path: self.manifest.files[path].sha256 for path in entry.files}


def build_targets(
    bundle: Path,
    targets: Sequence[Target],
    options: BuildOptions | None = None,
    report: Report = no_report,
    progress: Progress = no_progress,
    measure: Measure | None = None,
) -> dict[Target, bool | KoalaError]:
    """Build for each target as ``build_engines`` does; return its answer or, where it failed, the error.

    A target that fails does not stop the others. Raises BundleError if there is no bundle.
    """
    read_manifest(bundle)
    results: dict[Target, bool | KoalaError] = {}
    for target in targets:
        try:
            results[target] = build_engines(bundle, target, options, report, progress, measure)
        except KoalaError as error:
            results[target] = error
    return results


def build_engines(
    bundle: Path,
    target: Target,
    options: BuildOptions | None = None,
    report: Report = no_report,
    progress: Progress = no_progress,
    measure: Measure | None = None,
) -> bool:
    """Build the plans of ``bundle`` for ``target`` that are missing or out of date; return False if none is.

    ``measure`` times a plan on the GPU ``options.device``, for ``options.tune``. Other sets of plans of the target, for
    other GPUs, are left alone. Raises InputError for what the caller can fix and BuildError if the compiler refuses
    a component.
    """
    options = options or BuildOptions()
    compiler = open_compiler(target, options)
    bundle = whole(real_path(bundle))
    build = _Build(bundle, compiler, read_manifest(bundle), options, report, progress, measure)
    if options.tune and target.needs_gpu and measure is None:
        raise ArgumentError(
            "tune", expected="a function that measures plans", found="none", fix="pass measure, or leave out tune"
        )
    key = compiler.key()
    refuse_link_out(build.folder, bundle, "remove the link")
    with prepare_output(build.folder, FileLock):
        reasons = _reasons(build)
        if not reasons:
            for entry in build.manifest.components:
                _check_losses(build, entry, build.kept[entry.name])
            return False
        report(f"{target}: building with {key.compiler} {key.compiler_version}: {'; '.join(reasons)}")
        wanted = [entry for entry in build.manifest.components if entry.name not in build.kept]
        onnx_files = {path: build.manifest.files[path] for entry in wanted for path in entry.files}
        again = f"export the bundle again with `koala export SOURCE {bundle}`"
        check_files(bundle, onnx_files, again)
        for entry in wanted:
            _check_graph(bundle, entry, again)
        digest = hashlib.sha256(json.dumps(to_json(key), sort_keys=True).encode()).hexdigest()
        staging = Staging(build.folder, digest)
        try:
            with current_gpu(options.device if target.built_on_its_gpu else None):
                _write(build, staging)
        except (KoalaError, OSError):
            staging.discard()
            raise
        staging.commit()
    return True


def _check_graph(bundle: Path, entry: ComponentEntry, fix: str) -> None:
    """Raise BundleError unless a graph's tensors are in the file beside it, which is where every compiler looks."""
    graph, *others = entry.files
    data = f"{graph}.data"
    if others not in ([], [data]):
        raise BundleError(f"{bundle}: files of {entry.name}", expected=data, found=f"{others!s:.200}", fix=fix)
    check_locations(bundle / graph, {PurePosixPath(other).name for other in others}, fix)


def _reasons(build: _Build) -> list[str]:
    """Return why the engines have to be built, empty if they are up to date; fill in the plans that are kept."""
    if not build.folder.exists():
        return ["there are none yet"]
    try:
        old = read_engine_record(build.bundle, build.target, build.compiler.variant)
    except KoalaError as error:
        return [str(error)]
    if reasons := build.compiler.key().changes_since(old.key):
        return reasons
    before, now = old.onnx_digests(), build.manifest.onnx_digests()
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    damaged = False
    for entry in build.manifest.components:
        plan = old.plans.get(entry.name)
        if plan is None or plan.onnx != build.onnx(entry):
            continue
        files = {name: old.files[name] for name in plan.files}
        try:
            check_files_once(build.folder, files, "", bundle=build.bundle)
        except KoalaError:
            damaged = True
            continue
        build.kept[entry.name] = plan
        build.kept_files |= files
    return [
        *([f"ONNX changed ({', '.join(changed)})"] if changed else []),
        *(["plans are missing, cut short or damaged"] if damaged else []),
    ]


def _write(build: _Build, staging: Staging) -> None:
    plans, files = {}, {}
    for entry in build.manifest.components:
        if entry.name in build.kept:
            build.report(f"{build.target}: {entry.name}: unchanged, kept")
            plan = build.kept[entry.name]
            for name in plan.files:
                link(build.folder / name, staging.folder / name)
                files[name] = build.kept_files[name]
        else:
            plan, new = _finish(build, staging, entry)
            files |= new
        _check_losses(build, entry, plan)
        plans[entry.name] = plan
    record = EngineRecord(SCHEMA_VERSION, build.target.name, build.compiler.key(), plans, files)
    write_sealed(staging.folder / ENGINE_RECORD, record)


def _finish(build: _Build, staging: Staging, entry: ComponentEntry) -> tuple[PlanEntry, dict[str, FileEntry]]:
    """Build one component, unless a build that was stopped has; return its plan and files."""
    done = staging.finished(entry.name)
    onnx = json.dumps(build.onnx(entry), sort_keys=True)
    if done and done.facts["onnx"] == onnx:
        build.report(f"{build.target}: {entry.name}: built before, kept")
    else:
        for leftover in staging.folder.glob(f"{entry.name}.*"):  # it may be a link to another bundle's plan
            leftover.unlink()
        started = time.monotonic()
        paths, trials = _compile(build, entry, staging.folder)
        seconds = f"{time.monotonic() - started:.1f}"
        found = json.dumps([*build.compiler.examine(paths[0]), trials])
        done = staging.finish(entry.name, paths, onnx=onnx, build_seconds=seconds, found=found)
        size = sum(file.size for file in done.files.values())
        build.report(f"{build.target}: {entry.name}: built in {seconds} s, {size / 1e6:,.1f} MB")
    kernels, scratch, trials = json.loads(done.facts["found"])
    plan = PlanEntry(
        tuple(done.files), build.onnx(entry), float(done.facts["build_seconds"]), kernels, scratch, tuple(trials)
    )
    return plan, done.files


def _compile(build: _Build, entry: ComponentEntry, folder: Path) -> tuple[list[Path], list[float]]:
    """Build one component into ``folder``; return its files, and the seconds that tuning measured."""
    source, progress = build.bundle / entry.files[0], partial(build.progress, f"{build.target}: {entry.name}")
    if not build.measure or not build.target.needs_gpu or not build.options.tune or entry.name not in TUNED:
        return build.compiler.build(entry.name, source, folder, progress), []
    return fastest(build.compiler, entry, source, folder, build.options.tune, build.measure, build.report, progress)


def _check_losses(build: _Build, entry: ComponentEntry, plan: PlanEntry) -> None:
    """Report what the compiler did not keep. Raises BuildError if that is to be an error."""
    for loss in build.compiler.losses(entry, build.manifest.profile.precision, plan.kernels):
        if build.options.strict:
            raise BuildError(
                f"{build.target}: {entry.name}",
                expected="every attention fused and every product in float16",
                found=loss,
                fix="build without strict to accept it, or report it with `koala inspect BUNDLE --json`",
            )
        build.report(f"WARNING: {build.target}: {entry.name}: {loss}")
