"""engines/<target>/engine.json: what the plans of a target are and what they were built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koala_bundle.errors import TargetError
from koala_bundle.files import FileEntry
from koala_bundle.manifest import check_listed, read_record
from koala_bundle.targets import Target

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
    """Everything that decides whether engines are still right; any difference means a rebuild.

    ``gpu`` is None for engines that run on more than the machine that built them; ``onnx`` maps path to SHA-256.
    """

    compiler: str
    compiler_version: str
    platform: str
    gpu: GPU | None
    options: dict[str, str]
    onnx: dict[str, str]

    def changes_since(self, old: EngineKey) -> list[str]:
        """Return in words what differs from ``old``; empty if the engines are up to date."""
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
        changed = sorted(
            path for path in old.onnx.keys() | self.onnx.keys() if old.onnx.get(path) != self.onnx.get(path)
        )
        if changed:
            reasons.append(f"ONNX changed ({', '.join(changed)})")
        return reasons


@dataclass(frozen=True)
class PlanEntry:
    """One built component: its file first, then any external data; how long the compiler took, its kernels by kind.

    ``activation_bytes`` is the scratch memory of one run, None where the compiler does not report it.
    """

    files: tuple[str, ...]
    build_seconds: float
    kernels: dict[str, int]
    activation_bytes: int | None


@dataclass(frozen=True)
class EngineRecord:
    """The whole of engine.json; file names are relative to its folder."""

    schema_version: int
    target: str
    key: EngineKey
    plans: dict[str, PlanEntry]
    files: dict[str, FileEntry]


def engine_folder(bundle: Path, target: Target) -> Path:
    """Return the folder of the plans for ``target``."""
    return bundle / "engines" / target.engines


def read_engine_record(bundle: Path, target: Target) -> EngineRecord:
    """Read ``engine.json`` of a target. Raises TargetError if there are no engines for it, BundleError if damaged."""
    path = engine_folder(bundle, target) / ENGINE_RECORD
    fix = f"build them with `koala engines {bundle} --target {target.engines}`"
    if not path.is_file():
        raise TargetError(f"target {target} of {bundle}", expected="built engines", found="none", fix=fix)
    record = read_record(EngineRecord, path, fix)
    check_listed(path, {name for plan in record.plans.values() for name in plan.files}, record.files, fix)
    return record
