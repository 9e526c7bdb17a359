"""Choosing the engines of a bundle and refusing those that do not belong here, before anything is deserialised."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
from koala_runtime.contract.tensorrt import open_tensorrt
from koala_runtime.executor import Executor
from koala_runtime.memory import budget, check_free
from koala_runtime.stages import Device, Plan

SIMULATED = "simulated"
"""Runs the engines for ``cpu`` on a GPU that is not there (``koala_runtime.simulated``); for those who develop this."""

_ENGINES_OF = {SIMULATED: "cpu"}


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
        return engine_folder(self.path, _ENGINES_OF.get(self.target, self.target))

    def plan(self, component: str) -> Path:
        """Where the plan of a component is."""
        return self.folder / self.record.plans[component].files[0]


def open_engines(path: Path, target: str | None = None) -> Engines:
    """Return the engines for ``target``, or for the best target that the bundle has and this machine can run.

    Raises BundleError for missing or damaged files and TargetError for engines that cannot be used.
    """
    for folder in (path, *(engine_folder(path, name) for name in TARGETS)):
        restore(folder)
    manifest = read_manifest(path)
    target = target or _best_target(path)
    if target not in (*TARGETS, SIMULATED):
        raise ArgumentError("target", expected=" or ".join(TARGETS), found=repr(target), mend="pass one of these")
    chosen, target = target, _ENGINES_OF.get(target, target)
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
    return Engines(path, manifest, chosen, record)


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


def obstacle(target: str) -> str | None:
    """Return None if this machine can run plans of ``target``, or in words what is in the way."""
    if target == "cpu":
        return None
    from koala_runtime.device import cuda_runtime

    problem = query_driver().problem
    try:
        open_tensorrt(target)
        cuda_runtime()
    except TargetError as error:
        return problem or f"{error.found}; {error.mend}"
    return problem


def make_executor(engines: Engines, *, low_memory: bool = False) -> Executor:
    """Load the plans.

    Raises TargetError for plans of another version of the compiler, DeviceError if the GPU has too little memory.
    """
    names = [entry.name for entry in engines.manifest.components]
    device, half, load = _BACKENDS[engines.target](engines)
    try:
        with device.current():
            check_free(budget(engines.manifest, engines.record), device.free_bytes(), low_memory=low_memory)
    except BaseException:
        device.close()
        raise
    return Executor(device, load, names, half, low_memory)


Loader: TypeAlias = Callable[[str], Plan]


def _cpu(engines: Engines) -> tuple[Device, str, Loader]:
    from koala_runtime.host import VERSION, HostDevice, OrtPlan

    _check_version(engines, VERSION)
    return HostDevice(), "float32", lambda name: OrtPlan(engines.plan(name))


def _simulated(engines: Engines) -> tuple[Device, str, Loader]:
    from koala_runtime.host import VERSION
    from koala_runtime.simulated import SimulatedDevice, SimulatedPlan

    _check_version(engines, VERSION)
    device = SimulatedDevice()
    weights = budget(engines.manifest, engines.record).weights
    scratch = {entry.name: sum(tensor.nbytes for tensor in entry.outputs) for entry in engines.manifest.components}
    return (
        device,
        "float32",
        lambda name: SimulatedPlan(device, name, engines.plan(name), weights[name], scratch[name]),
    )


def _gpu(engines: Engines) -> tuple[Device, str, Loader]:
    from koala_runtime.device import CudaDevice
    from koala_runtime.tensorrt import TensorRTPlan

    module = open_tensorrt(engines.target)
    _check_version(engines, str(module.__version__))
    device = CudaDevice()
    # The cache holds for one version of the library on one model of GPU.
    suffix = re.sub(r"\W+", "-", f"{engines.record.key.compiler_version} {query_driver().gpu}").strip("-")

    def load(name: str) -> Plan:
        return TensorRTPlan(module, engines.plan(name), device, engines.folder / f"{name}-{suffix}.kernels")

    return device, "float16", load


_BACKENDS = {"cpu": _cpu, "rtx": _gpu, "tensorrt": _gpu, SIMULATED: _simulated}


def _check_version(engines: Engines, installed: str) -> None:
    key = engines.record.key
    if key.compiler_version != installed:
        target = _ENGINES_OF.get(engines.target, engines.target)
        raise TargetError(
            f"engines for {target} in {engines.path}",
            expected=f"plans of {key.compiler} {installed}, which is installed",
            found=f"plans of {key.compiler} {key.compiler_version}",
            mend=f"build them again with `koala engines {engines.path} --target {target}`",
        )


def _best_target(path: Path) -> str:
    """Return the first target that has engines which this machine can run; cpu if there is none."""
    for target in TARGETS:
        if engine_folder(path, target).is_dir():
            try:
                _check_machine(path, target, read_engine_record(path, target))
            except TargetError:
                continue
            return target
    return TARGETS[-1]
