"""All plans of a bundle for one target: decide, build beside, swap in.

A build that is killed keeps its finished plans and goes on after them; one that fails leaves the old engines.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from koala_engines.kernels import losses
from koala_engines.options import BuildOptions
from koala_bundle.codec import to_json
from koala_bundle.errors import ArgumentError, BuildError, KoalaError
from koala_bundle.files import FileEntry, Staging, check_files, prepare_output, restore, write_json
from koala_bundle.manifest import (
    ENGINE_RECORD,
    SCHEMA_VERSION,
    TARGETS,
    ComponentEntry,
    EngineKey,
    EngineRecord,
    Manifest,
    PlanEntry,
    engine_folder,
    read_engine_record,
    read_manifest,
)

Report = Callable[[str], None]
Progress = Callable[[str, float], None]
"""Called with what is being built and how much of it is done, from 0 to 1."""


def build_engines(
    bundle: Path,
    target: str,
    options: BuildOptions | None = None,
    report: Report = lambda _: None,
    progress: Progress = lambda _, __: None,
) -> bool:
    """Build the plans of ``bundle`` for ``target``; False if they are there already, built from the same.

    Raises InputError for what the caller can fix and BuildError if the compiler refuses a component.
    """
    options = options or BuildOptions()
    compiler = _compiler(target)
    restore(bundle)
    manifest = read_manifest(bundle)
    key: EngineKey = compiler.engine_key(target, manifest, options)
    with prepare_output(engine_folder(bundle, target), FileLock):
        reasons = _reasons(bundle, target, key)
        if not reasons:
            plans = read_engine_record(bundle, target).plans
            for entry in manifest.components:
                _warn(target, entry, manifest, plans[entry.name], options, report)
            return False
        report(f"{target}: building with {key.compiler} {key.compiler_version}: {'; '.join(reasons)}")
        onnx_files = {path: manifest.files[path] for path in key.onnx}
        check_files(bundle, onnx_files, f"export the bundle again with `koala export SOURCE {bundle}`")
        digest = hashlib.sha256(json.dumps(to_json(key), sort_keys=True).encode()).hexdigest()
        staging = Staging(engine_folder(bundle, target), digest)
        try:
            _write(staging, bundle, target, manifest, key, options, report, progress)
        except (KoalaError, OSError):
            staging.discard()
            raise
        staging.commit()
    return True


def _compiler(target: str) -> ModuleType:
    """The module that builds for ``target``: it has ``engine_key``, ``build_plan`` and ``examine``."""
    if target == "cpu":
        from koala_engines import cpu

        return cpu
    if target in TARGETS:
        from koala_engines import tensorrt

        return tensorrt
    raise ArgumentError("--target", expected=" or ".join(TARGETS), found=repr(target), fix="pass one of these")


def _reasons(bundle: Path, target: str, key: EngineKey) -> list[str]:
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
    target: str,
    manifest: Manifest,
    key: EngineKey,
    options: BuildOptions,
    report: Report,
    progress: Progress,
) -> None:
    plans: dict[str, PlanEntry] = {}
    files: dict[str, FileEntry] = {}
    for entry in manifest.components:
        done = staging.finished(entry.name)
        if done:
            report(f"{target}: {entry.name}: finished before, kept")
        else:
            started = time.monotonic()
            paths = _compiler(target).build_plan(
                target,
                entry.name,
                bundle / entry.files[0],
                staging.folder,
                options,
                lambda fraction, name=entry.name: progress(f"{target}: {name}", fraction),
            )
            seconds = f"{time.monotonic() - started:.1f}"
            found = json.dumps(_compiler(target).examine(target, paths[0]))
            done = staging.finish(entry.name, paths, build_seconds=seconds, found=found)
            size = sum(file.size for file in done.files.values())
            report(f"{target}: {entry.name}: built in {done.facts['build_seconds']} s, {size / 1e6:,.1f} MB")
        plan = PlanEntry(tuple(done.files), float(done.facts["build_seconds"]), *json.loads(done.facts["found"]))
        _warn(target, entry, manifest, plan, options, report)
        plans[entry.name] = plan
        files |= done.files
    write_json(staging.folder / ENGINE_RECORD, EngineRecord(SCHEMA_VERSION, target, key, plans, files))


def _warn(target: str, entry: ComponentEntry, manifest: Manifest, plan: PlanEntry, options: BuildOptions, report: Report) -> None:
    """Tell what the compiler lost on the way. Raises BuildError if that is not to happen."""
    if target == "cpu":
        return  # one kernel per operation, in float32
    for loss in losses(entry, manifest.profile.precision, plan.kernels):
        if options.strict:
            raise BuildError(
                f"{target}: {entry.name}",
                expected="every attention fused and every product in float16",
                found=loss,
                fix="build without --strict to accept it, or report it with `koala inspect BUNDLE --json`",
            )
        report(f"WARNING: {target}: {entry.name}: {loss}")
