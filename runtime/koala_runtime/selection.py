"""Choosing the engines of a bundle, and refusing those that this machine cannot run before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koala_bundle.engine_record import EngineRecord, engine_folder, read_engine_record
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.files import check_files, file_entry, restore
from koala_bundle.manifest import MANIFEST, TOKENIZERS, Manifest, read_manifest
from koala_bundle.targets import CPU, TARGETS, Target, find_target
from koala_machine.driver import query_driver


@dataclass(frozen=True)
class EngineSet:
    """A bundle's manifest and the engines chosen from it.

    ``digest`` is the SHA-256 of manifest.json, ``device`` the index or UUID of the GPU, None for the first.
    """

    path: Path
    digest: str
    manifest: Manifest
    target: Target
    record: EngineRecord
    device: int | str | None = None

    @property
    def folder(self) -> Path:
        """Where the plans are."""
        return engine_folder(self.path, self.target)

    @property
    def components(self) -> list[str]:
        """Names of the components, in the order in which a picture runs them."""
        return [entry.name for entry in self.manifest.components]

    def plan(self, component: str) -> Path:
        """Return the file of a component's plan."""
        return self.folder / self.record.plans[component].files[0]

    def check_version(self, installed: str) -> None:
        """Raise TargetError unless the plans are of the version of the compiler that is installed."""
        key = self.record.key
        if key.compiler_version != installed:
            raise TargetError(
                f"engines for {self.target.engines} in {self.path}",
                expected=f"plans of {key.compiler} {installed}, which is installed",
                found=f"plans of {key.compiler} {key.compiler_version}",
                fix=_rebuild(self.path, self.target),
            )


def open_engines(path: Path, target: str | None = None, device: int | str | None = None) -> EngineSet:
    """Return the engines for ``target``, or for the best target that the bundle has and this machine can run.

    ``device`` is the index or UUID of a GPU; None takes the first.

    Raises ArgumentError for an unknown target, BundleError for missing or damaged files and TargetError for engines
    that cannot be used.
    """
    for folder in (path, *(engine_folder(path, each) for each in TARGETS)):
        restore(folder)
    manifest = read_manifest(path)
    chosen = find_target(target, simulated=True) if target else _best_target(path, device)
    record = read_engine_record(path, chosen)
    if device is not None and not chosen.needs_gpu:
        raise ArgumentError(
            "device", expected=f"None, because {chosen} runs on the processor", found=repr(device), fix="leave it out"
        )
    _check_machine(path, chosen, record, device)
    if record.key.onnx != manifest.onnx_digests():
        raise TargetError(
            f"engines for {chosen.engines} in {path}",
            expected="plans built from this bundle's ONNX",
            found="plans built from other ONNX files",
            fix=_rebuild(path, chosen),
        )
    check_files(
        path,
        {name: entry for name, entry in manifest.files.items() if name.startswith(TOKENIZERS)},
        f"export the bundle again with `koala export SOURCE {path}`",
    )
    check_files(engine_folder(path, chosen), record.files, _rebuild(path, chosen))
    return EngineSet(path, file_entry(path / MANIFEST).sha256, manifest, chosen, record, device)


def _rebuild(path: Path, target: Target) -> str:
    return f"build them again with `koala engines {path} --target {target.engines}`"


def _check_machine(path: Path, target: Target, record: EngineRecord, device: int | str | None) -> None:
    """Raise TargetError if the plans are for another GPU, or for one that is not here."""
    if not target.needs_gpu:
        return
    driver, key = query_driver(device=device or 0), record.key
    if driver.gpu is None:
        raise TargetError(
            f"target {target}",
            expected="an NVIDIA GPU",
            found=str(driver.problem),
            fix=f"build for the processor with `koala engines {path} --target {CPU}` and run target {CPU}",
        )
    capabilities = key.options.get("compute_capabilities", "all").split(",")
    if key.gpu not in (None, driver.gpu) or not {"all", driver.gpu.compute_capability} & {*capabilities}:
        raise TargetError(
            f"engines for {target} in {path}",
            expected=f"plans for {driver.gpu}, the GPU of this machine",
            found=f"plans for {key.gpu or ' or '.join(capabilities)}",
            fix=f"build them on this machine with `koala engines {path} --target {target}`",
        )


def _best_target(path: Path, device: int | str | None) -> Target:
    """Return the first target that has engines which this machine can run; cpu if there is none."""
    for target in TARGETS:
        if engine_folder(path, target).is_dir():
            try:
                _check_machine(path, target, read_engine_record(path, target), device)
            except TargetError:
                continue
            return target
    return CPU
