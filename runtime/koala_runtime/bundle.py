"""Choosing the engines of a bundle and refusing those that do not belong here, before anything is deserialised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koala_runtime.contract.errors import ArgumentError, TargetError
from koala_runtime.contract.files import check_files, restore
from koala_runtime.contract.gpu import query_driver
from koala_runtime.contract.manifest import (
    TARGETS,
    TOKENIZERS,
    EngineRecord,
    Manifest,
    engine_folder,
    read_engine_record,
    read_manifest,
)
from koala_runtime.stages import Executor

RUNNABLE = ("cpu",)  # best first; plans for tensorrt and rtx are built already, their executor is not written yet


@dataclass(frozen=True)
class Engines:
    """A bundle's manifest and the engines chosen from it."""

    path: Path
    manifest: Manifest
    target: str
    record: EngineRecord

    @property
    def folder(self) -> Path:
        """Where the plans are."""
        return engine_folder(self.path, self.target)


def open_engines(path: Path, target: str | None = None) -> Engines:
    """Return the engines for ``target``, or for the best target that the bundle has and this machine can run.

    Raises BundleError for missing or damaged files and TargetError for engines that cannot be used.
    """
    for folder in (path, *(engine_folder(path, name) for name in TARGETS)):
        restore(folder)
    manifest = read_manifest(path)
    target = target or _best_target(path)
    if target not in TARGETS:
        raise ArgumentError("target", expected=" or ".join(TARGETS), found=repr(target), mend="pass one of these")
    record = read_engine_record(path, target)
    _check_machine(path, target, record)
    mend = f"build them again with `koala engines {path} --target {target}`"
    if record.key.onnx != manifest.onnx_digests():
        raise TargetError(
            f"engines for {target} in {path}",
            expected="plans built from this bundle's ONNX",
            found="plans built from other ONNX files",
            mend=mend,
        )
    check_files(
        path,
        {name: entry for name, entry in manifest.files.items() if name.startswith(TOKENIZERS)},
        f"export the bundle again with `koala export SOURCE {path}`",
    )
    check_files(engine_folder(path, target), record.files, mend)
    return Engines(path, manifest, target, record)


def _check_machine(path: Path, target: str, record: EngineRecord) -> None:
    """Raise TargetError if the plans are for another GPU, or for one that is not here."""
    if target == "cpu":
        return
    driver, key = query_driver(), record.key
    instead = f"run on the processor with `koala engines {path} --target cpu` and `--target cpu`"
    if driver.gpu is None:
        raise TargetError(f"target {target}", expected="an NVIDIA GPU", found=str(driver.problem), mend=instead)
    capabilities = key.options.get("compute_capabilities", "all").split(",")
    if key.gpu not in (None, driver.gpu) or not {"all", driver.gpu.compute_capability} & {*capabilities}:
        raise TargetError(
            f"engines for {target} in {path}",
            expected=f"plans for {driver.gpu}, the GPU of this machine",
            found=f"plans for {key.gpu or ' or '.join(capabilities)}",
            mend=f"build them on this machine with `koala engines {path} --target {target}`",
        )
    if target not in RUNNABLE:
        raise TargetError(
            f"target {target}",
            expected=f"one that this version can run ({', '.join(RUNNABLE)})",
            found="plans that it can only build",
            mend=instead,
        )


def make_executor(engines: Engines) -> Executor:
    """Load the plans. Raises TargetError if they were built by another version of the compiler."""
    from koala_runtime import cpu

    key = engines.record.key
    if key.compiler_version != cpu.VERSION:
        raise TargetError(
            f"engines for {engines.target} in {engines.path}",
            expected=f"plans of {key.compiler} {cpu.VERSION}, which is installed",
            found=f"plans of {key.compiler} {key.compiler_version}",
            mend=f"build them again with `koala engines {engines.path} --target {engines.target}`",
        )
    return cpu.CpuExecutor(engines.folder, engines.record)


def _best_target(path: Path) -> str:
    return next((target for target in RUNNABLE if engine_folder(path, target).is_dir()), RUNNABLE[-1])
