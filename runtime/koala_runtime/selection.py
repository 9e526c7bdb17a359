"""Choosing the engines of a bundle, and refusing those that this machine cannot run before anything is loaded."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from koala_bundle.checked import check_files_once
from koala_bundle.clip_tokenizer import check_tokenizer
from koala_bundle.engine_record import (
    EngineRecord,
    build_command,
    engine_folder,
    engine_variants,
    gpu_variant,
    open_engine_record,
    read_engine_record,
)
from koala_bundle.errors import ArgumentError, BundleError, TargetError
from koala_bundle.files import FileEntry, FileState, file_state
from koala_bundle.manifest import MANIFEST, TOKENIZER_FILE, TOKENIZERS, Manifest, check_listed, open_manifest
from koala_bundle.onnx_locations import check_locations
from koala_bundle.places import inside
from koala_bundle.signed import record_name
from koala_bundle.swap import whole
from koala_bundle.targets import CPU, TARGETS, Target, find_target
from koala_machine.driver import Driver, find_gpu, query_driver
from koala_runtime.budget import budget
from koala_runtime.preflight import check_hardware, check_machine, check_plan
from koala_runtime.signature import check_signed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSet:
    """A bundle's manifest and the engines chosen from it.

    ``digest`` is the SHA-256 of manifest.json, ``variant`` tells the engines from others for the same target
    (``koala_bundle.engine_record``), ``device`` is the index or UUID of the GPU, None for the first.
    """

    path: Path
    digest: str
    manifest: Manifest
    target: Target
    variant: str
    record: EngineRecord
    device: int | str | None = None
    states: Mapping[str, FileState | None] = field(default_factory=dict)
    """Of each file of the plans, before it was checked."""
    tokenizers: tuple[FileEntry, ...] = ()
    """What the two tokenizers are to be."""
    is_signed: bool = False
    """Whether a signature was asked for, and found."""

    @property
    def folder(self) -> Path:
        """Where the plans are."""
        return whole(engine_folder(self.path, self.target, self.variant))

    @property
    def components(self) -> list[str]:
        """Names of the components, in the order in which a picture runs them."""
        return [entry.name for entry in self.manifest.components]

    def plan(self, component: str) -> Path:
        """Return the file of a component's plan. Raises BundleError if it is not the one that was checked."""
        names = self.record.plans[component].files
        for name in names:
            if name in self.states and file_state(self.folder / name) != self.states[name]:
                raise BundleError(
                    str(self.folder / name),
                    expected="the file that was there when the pipeline was opened",
                    found="another, or changed bytes",
                    fix="open the pipeline again; `koala engines` replaces engines without changing open files",
                )
        return self.folder / names[0]

    def check_version(self, installed: str) -> None:
        """Raise TargetError unless the plans are of the version of the compiler that is installed."""
        key = self.record.key
        if key.compiler_version != installed:
            raise TargetError(
                f"engines for {self.target.engines} in {self.path}",
                expected=f"plans of {key.compiler} {installed}, which is installed",
                found=f"plans of {key.compiler} {key.compiler_version}",
                fix=_rebuild(self.path, self.target, self.variant),
            )


def open_engines(
    path: Path,
    target: str | None = None,
    device: int | str | None = None,
    *,
    verify: bool = False,
    key: str | Path | None = None,
) -> EngineSet:
    """Return the engines for ``target``, or for the best target that the bundle has and this machine can run.

    ``device`` is the index or UUID of a GPU, which is then not replaced by the processor; None takes the first. Files
    whose digest was checked before and that have not changed since are not read again, unless ``verify``. ``key`` is
    a public key, or its file, that must have signed the bundle and these engines (``koala_runtime.signature``).

    Raises ArgumentError for an unknown target, BundleError for missing or damaged files and TargetError for engines
    that cannot be used.
    """
    path = whole(path.absolute())
    manifest, digest = open_manifest(path)
    wanted = find_target(target, simulated=True) if target else None
    driver = query_driver() if device is None else _driver_of(device, path, wanted)
    if wanted:
        chosen, (variant, _) = wanted, _engines_for(path, wanted, driver)
    else:
        chosen, variant, _ = _best(path, manifest, driver, gpus_only=device is not None)
    record, record_digest = open_engine_record(path, chosen, variant)
    if key is not None:
        check_signed(path, key, {MANIFEST: digest, record_name(path, chosen, variant): record_digest})
    rebuild = _rebuild(path, chosen, variant)
    if not record.is_of(manifest):
        raise TargetError(
            f"engines for {chosen.engines} in {path}",
            expected="plans built from this bundle's ONNX",
            found="plans built from other ONNX files",
            fix=rebuild,
        )
    folder = whole(engine_folder(path, chosen, variant))
    states = {name: file_state(inside(folder, name, rebuild, path)) for name in record.files}
    tokenizers = check_tokenizers(path, manifest, verify)
    _check_plan_files(path, folder, chosen, record, rebuild, verify)
    _check_plans(path, chosen, variant, record)
    return EngineSet(path, digest, manifest, chosen, variant, record, device, states, tokenizers, key is not None)


def check_tokenizers(path: Path, manifest: Manifest, verify: bool) -> tuple[FileEntry, ...]:
    """Check both tokenizers; return their entries in the manifest."""
    fix = f"export the bundle again with `koala export SOURCE {path}`"
    names = [f"{folder}/{TOKENIZER_FILE}" for folder in TOKENIZERS]
    check_listed(path / MANIFEST, [tuple(names)], manifest.files, fix)
    entries = {name: manifest.files[name] for name in names}
    check_files_once(path, entries, fix, verify=verify, examine=lambda name: check_tokenizer(path / name, fix))
    return tuple(entries.values())


def _check_plan_files(path: Path, folder: Path, target: Target, record: EngineRecord, fix: str, verify: bool) -> None:
    """Check the plans' files; of ONNX plans also which other files they name."""
    onnx = {plan.files[0]: {*plan.files[1:]} for plan in record.plans.values() if target.library == CPU.library}

    def examine(name: str) -> None:
        if name in onnx:
            check_locations(folder / name, onnx[name], fix)

    check_files_once(folder, record.files, fix, verify=verify, bundle=path, examine=examine)


def _driver_of(device: int | str, path: Path, wanted: Target | None) -> Driver:
    """Return what the driver says of a GPU that was asked for. Raises ArgumentError where no GPU is to be used."""
    there = (target for target in TARGETS if target.needs_gpu and engine_variants(path, target))
    target = wanted or next(there, CPU)
    if not target.needs_gpu:
        raise ArgumentError(
            "device", expected=f"None, because {target} runs on the processor", found=repr(device), fix="leave it out"
        )
    return find_gpu(device)


def _best(path: Path, manifest: Manifest, driver: Driver, *, gpus_only: bool) -> tuple[Target, str, EngineRecord]:
    """Return the first target whose engines this machine can run, and log why it is not a better one."""
    skipped: list[TargetError] = []
    for target in TARGETS:
        if not engine_variants(path, target) or (gpus_only and not target.needs_gpu):
            continue
        try:
            variant, record = _engines_for(path, target, driver)
            if target.has_device:
                _check_memory(path, manifest, target, record, driver)
                _check_plans(path, target, variant, record)
        except TargetError as error:
            skipped.append(error)
            continue
        for reason in skipped:
            level = logging.INFO if driver.gpu is None else logging.WARNING
            _log.log(level, "using target %s: %s", target, reason)
        return target, variant, record
    if skipped:
        raise skipped[0]
    return CPU, "", read_engine_record(path, CPU)


def _check_plans(path: Path, target: Target, variant: str, record: EngineRecord) -> None:
    """Raise TargetError if the library says that it cannot run one of the plans on this GPU."""
    library: Any = importlib.import_module(target.library) if target.needs_gpu else None
    if hasattr(library, "EngineValidity"):
        for plan in record.plans.values():
            check_plan(library, whole(engine_folder(path, target, variant)) / plan.files[0])


def _engines_for(path: Path, target: Target, driver: Driver) -> tuple[str, EngineRecord]:
    """Return the engines of ``target`` for the GPU of this machine. Raises TargetError if it cannot run any."""
    variants = engine_variants(path, target)
    if not variants:
        return "", read_engine_record(path, target)
    check_hardware(target, driver)
    if driver.gpu is None or not target.needs_gpu:
        check_machine(target, driver)
        return "", read_engine_record(path, target)
    found: list[str] = []
    for variant, record in _records(path, target, variants, driver):
        key = record.key
        capabilities = key.options.get("compute_capabilities", driver.gpu.compute_capability).split(",")
        if key.gpu == driver.gpu or (key.gpu is None and driver.gpu.compute_capability in capabilities):
            check_machine(target, driver)
            return variant, record
        found.append(str(key.gpu or " or ".join(capabilities)))
    raise TargetError(
        f"engines for {target} in {path}",
        expected=f"plans for {driver.gpu}, the GPU of this machine",
        found=f"plans for {', and for '.join(found)}",
        fix=f"build them on this machine with {build_command(path, target)}",
    )


def _records(path: Path, target: Target, variants: list[str], driver: Driver) -> Iterator[tuple[str, EngineRecord]]:
    """Yield the sets of plans, that of this machine's GPU first: then nothing is read of other GPUs' engines."""
    own = gpu_variant(driver.gpu) if driver.gpu else ""
    for variant in sorted(variants, key=lambda each: each != own):
        yield variant, read_engine_record(path, target, variant)


def _check_memory(path: Path, manifest: Manifest, target: Target, record: EngineRecord, driver: Driver) -> None:
    """Raise TargetError if not even the largest phase fits the GPU; what is free is looked at when the plans load."""
    if not record.is_of(manifest):
        return
    needed = budget(manifest, record).total(low_memory=True)
    if needed > driver.memory_bytes:
        raise TargetError(
            f"engines for {target} in {path}",
            expected=f"a GPU with {needed / 1e6:,.0f} MB, with low_memory=True",
            found=f"{driver.memory_bytes / 1e6:,.0f} MB",
            fix=f"run target {CPU}",
        )


def _rebuild(path: Path, target: Target, variant: str) -> str:
    return f"build them again with {build_command(path, target, variant)}"
