"""engine.json: what a set of plans is and what it was built from. A bundle may hold several sets:

    engines/cpu/
    engines/rtx/, engines/rtx-7.5/                       one per list of compute capabilities
    engines/tensorrt/nvidia-geforce-rtx-4090-8.9/, ...   one per model of GPU

What tells the sets of one target apart is their ``variant``: ``7.5``, ``nvidia-geforce-rtx-4090-8.9``, or empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from koala_bundle.errors import TargetError
from koala_bundle.files import FileEntry
from koala_bundle.manifest import Manifest, check_listed, read_record
from koala_bundle.swap import whole
from koala_bundle.targets import Target

ENGINES = "engines"
"""The folder of a bundle that holds its plans."""
ENGINE_RECORD = "engine.json"


@dataclass(frozen=True)
class GPU:
    """The device a plan is built for; ``compute_capability`` as in "8.9"."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


@dataclass(frozen=True)
class EngineKey:
    """What all plans of a set depend on besides their ONNX files; any difference means a rebuild of all of them.

    ``gpu`` is None for engines that run on more than the machine that built them.
    """

    compiler: str
    compiler_version: str
    platform: str
    gpu: GPU | None
    options: dict[str, str]

    def changes_since(self, old: EngineKey) -> list[str]:
        """Return in words what differs from ``old``; empty if nothing does."""
        reasons = []
        if (old.compiler, old.compiler_version) != (self.compiler, self.compiler_version):
            reasons.append(f"{old.compiler} {old.compiler_version} -> {self.compiler} {self.compiler_version}")
        if old.platform != self.platform:
            reasons.append(f"{old.platform} -> {self.platform}")
        if old.gpu != self.gpu:
            reasons.append(f"{old.gpu or 'any GPU'} -> {self.gpu or 'any GPU'}")
        for option in sorted(old.options.keys() | self.options.keys()):
            before, now = old.options.get(option, "unset"), self.options.get(option, "unset")
            if before != now:
                reasons.append(f"{option} {before} -> {now}")
        return reasons


@dataclass(frozen=True)
class PlanEntry:
    """One built component: its file first, then any external data; how long the compiler took, its kernels by kind.

    ``onnx`` maps the path of each ONNX file it was built from to its SHA-256; another digest means a rebuild of this
    plan. ``activation_bytes`` is the scratch memory of one run, None where the compiler does not report it.
    ``trials`` are the seconds of one run of each build that tuning compared, fastest first; empty without tuning.
    """

    files: tuple[str, ...]
    onnx: dict[str, str]
    build_seconds: float
    kernels: dict[str, int]
    activation_bytes: int | None
    trials: tuple[float, ...]


@dataclass(frozen=True)
class EngineRecord:
    """The whole of engine.json; file names are relative to its folder."""

    schema_version: int
    target: str
    key: EngineKey
    plans: dict[str, PlanEntry]
    files: dict[str, FileEntry]

    def onnx_digests(self) -> dict[str, str]:
        """SHA-256 by path of every ONNX file that the plans were built from."""
        return {path: digest for plan in self.plans.values() for path, digest in plan.onnx.items()}

    def is_of(self, manifest: Manifest) -> bool:
        """Whether these are plans of all components of a bundle, built from its ONNX files."""
        names = {entry.name for entry in manifest.components}
        return self.plans.keys() == names and self.onnx_digests() == manifest.onnx_digests()


def gpu_variant(gpu: GPU) -> str:
    """Return the variant of plans for one model of GPU: its name in small letters, and its compute capability."""
    return f"{re.sub(r'[^a-z0-9]+', '-', gpu.name.lower()).strip('-')}-{gpu.compute_capability}"


def engine_folder(bundle: Path, target: Target, variant: str = "") -> Path:
    """Return the folder of a set of plans for ``target``."""
    folder = bundle / ENGINES / target.engines
    if target.built_on_its_gpu:
        return folder / variant
    return folder.with_name(f"{target.engines}-{variant}") if variant else folder


def engine_variants(bundle: Path, target: Target) -> list[str]:
    """Return the variants of ``target`` that the bundle has plans for, sorted; empty if there are none."""
    if target.built_on_its_gpu:
        return _record_folders(engine_folder(bundle, target))
    names = _record_folders(bundle / ENGINES)
    start = f"{target.engines}-"
    return sorted(name.removeprefix(target.engines).removeprefix("-") for name in names if f"{name}-".startswith(start))


def _record_folders(parent: Path) -> list[str]:
    """Return the names of the sets of plans in ``parent``, those included that a killed writer left in its swap."""
    found = (path.parent.name for path in parent.glob(f"*/{ENGINE_RECORD}"))
    swapped = (path.parent.name for path in parent.glob(f".*.old/{ENGINE_RECORD}"))
    return sorted({name for name in found if not name.startswith(".")} | {name[1:-4] for name in swapped})


def read_engine_record(bundle: Path, target: Target, variant: str = "") -> EngineRecord:
    """Read ``engine.json`` of a set of plans.

    Raises TargetError if there are no such engines, BundleError if the file is damaged.
    """
    return open_engine_record(bundle, target, variant)[0]


def open_engine_record(bundle: Path, target: Target, variant: str = "") -> tuple[EngineRecord, str]:
    """Read as ``read_engine_record`` does; return with the record the SHA-256 of the bytes that were read."""
    path = whole(engine_folder(bundle, target, variant)) / ENGINE_RECORD
    fix = f"build them with {build_command(bundle, target, variant)}"
    if not path.is_file():
        raise TargetError(f"target {target} of {bundle}", expected="built engines", found="none", fix=fix)
    record, digest = read_record(EngineRecord, path, fix, bundle)
    check_listed(path, [plan.files for plan in record.plans.values()], record.files, fix)
    return record, digest


def build_command(bundle: Path, target: Target, variant: str = "") -> str:
    """Return the command that builds a set of plans, in backquotes."""
    chosen = f" --compute-capability {variant}" if variant and not target.built_on_its_gpu else ""
    return f"`koala engines {bundle} --target {target.engines}{chosen}`"
