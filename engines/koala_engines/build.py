"""All plans of a bundle for one target: decide, build beside the old ones, swap in.

A build that is killed keeps its finished plans and resumes after them; one that fails leaves the old engines.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import partial
from pathlib import Path

from filelock import FileLock

from koala_bundle.codec import to_json
from koala_bundle.engine_record import (
    ENGINE_RECORD,
    EngineKey,
    EngineRecord,
    PlanEntry,
    engine_folder,
    read_engine_record,
)
from koala_bundle.errors import BuildError, KoalaError
from koala_bundle.files import FileEntry, Staging, check_files, prepare_output, restore, write_json
from koala_bundle.manifest import SCHEMA_VERSION, ComponentEntry, Manifest, read_manifest
from koala_bundle.progress import Progress, Report, no_progress, no_report
from koala_bundle.targets import Target
from koala_engines.compiler import Compiler
from koala_engines.opening import open_compiler
from koala_engines.options import BuildOptions


def build_engines(
    bundle: Path,
    target: Target,
    options: BuildOptions | None = None,
    report: Report = no_report,
    progress: Progress = no_progress,
) -> bool:
    """Build the plans of ``bundle`` for ``target``; return False if they are up to date.

    Raises InputError for what the caller can fix and BuildError if the compiler refuses a component.
    """
    options = options or BuildOptions()
    compiler = open_compiler(target, options)
    restore(bundle)
    manifest = read_manifest(bundle)
    key = compiler.key(manifest)
    with prepare_output(engine_folder(bundle, target), FileLock):
        reasons = _reasons(bundle, target, key)
        if not reasons:
            plans = read_engine_record(bundle, target).plans
            for entry in manifest.components:
                _check_losses(compiler, entry, manifest, plans[entry.name], options, report)
            return False
        report(f"{target}: building with {key.compiler} {key.compiler_version}: {'; '.join(reasons)}")
        onnx_files = {path: manifest.files[path] for path in key.onnx}
        check_files(bundle, onnx_files, f"export the bundle again with `koala export SOURCE {bundle}`")
        digest = hashlib.sha256(json.dumps(to_json(key), sort_keys=True).encode()).hexdigest()
        staging = Staging(engine_folder(bundle, target), digest)
        try:
            _write(staging, bundle, compiler, manifest, key, options, report, progress)
        except (KoalaError, OSError):
            staging.discard()
            raise
        staging.commit()
    return True


def _reasons(bundle: Path, target: Target, key: EngineKey) -> list[str]:
    """Return why the engines have to be built; empty if they are up to date."""
    if not engine_folder(bundle, target).exists():
        return ["there are none yet"]
    try:
        old = read_engine_record(bundle, target)
    except KoalaError as error:
        return [str(error)]
    sizes = {engine_folder(bundle, target) / name: entry.size for name, entry in old.files.items()}
    cut = any(not path.is_file() or path.stat().st_size != size for path, size in sizes.items())
    return [*key.changes_since(old.key), *(["plans are missing or cut short"] if cut else [])]


def _write(
    staging: Staging,
    bundle: Path,
    compiler: Compiler,
    manifest: Manifest,
    key: EngineKey,
    options: BuildOptions,
    report: Report,
    progress: Progress,
) -> None:
    target = compiler.target
    plans: dict[str, PlanEntry] = {}
    files: dict[str, FileEntry] = {}
    for entry in manifest.components:
        done = staging.finished(entry.name)
        if done:
            report(f"{target}: {entry.name}: built before, kept")
        else:
            started = time.monotonic()
            paths = compiler.build(
                entry.name,
                bundle / entry.files[0],
                staging.folder,
                partial(progress, f"{target}: {entry.name}"),
            )
            seconds = f"{time.monotonic() - started:.1f}"
            found = json.dumps(compiler.examine(paths[0]))
            done = staging.finish(entry.name, paths, build_seconds=seconds, found=found)
            size = sum(file.size for file in done.files.values())
            report(f"{target}: {entry.name}: built in {done.facts['build_seconds']} s, {size / 1e6:,.1f} MB")
        plan = PlanEntry(tuple(done.files), float(done.facts["build_seconds"]), *json.loads(done.facts["found"]))
        _check_losses(compiler, entry, manifest, plan, options, report)
        plans[entry.name] = plan
        files |= done.files
    write_json(staging.folder / ENGINE_RECORD, EngineRecord(SCHEMA_VERSION, target.name, key, plans, files))


def _check_losses(
    compiler: Compiler,
    entry: ComponentEntry,
    manifest: Manifest,
    plan: PlanEntry,
    options: BuildOptions,
    report: Report,
) -> None:
    """Report what the compiler did not keep. Raises BuildError if that is to be an error."""
    for loss in compiler.losses(entry, manifest.profile.precision, plan.kernels):
        if options.strict:
            raise BuildError(
                f"{compiler.target}: {entry.name}",
                expected="every attention fused and every product in float16",
                found=loss,
                fix="build without strict to accept it, or report it with `koala inspect BUNDLE --json`",
            )
        report(f"WARNING: {compiler.target}: {entry.name}: {loss}")
