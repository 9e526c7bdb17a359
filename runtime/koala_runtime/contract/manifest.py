"""manifest.json: what a bundle is, and engines/<target>/engine.json: what its engines were built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from koala_runtime.contract.codec import CodecError, from_json
from koala_runtime.contract.counts import NOTHING, Counts
from koala_runtime.contract.errors import BundleError, TargetError
from koala_runtime.contract.files import FileEntry
from koala_runtime.contract.gpu import GPU
from koala_runtime.contract.io import Component
from koala_runtime.contract.spec import ModelSpec, Profile, Sampling

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
ENGINE_RECORD = "engine.json"
TOKENIZERS = ("tokenizer", "tokenizer_2")
TARGETS = ("tensorrt", "rtx", "cpu")

T = TypeVar("T")


@dataclass(frozen=True)
class ComponentEntry(Component):
    """A component in a bundle, its files (the ONNX graph first, then its external data), and how much work it is."""

    files: tuple[str, ...] = ()
    counts: Counts = NOTHING


@dataclass(frozen=True)
class Origin:
    """What a bundle was exported from: digest of the checkpoint's files, and the versions of what converted it."""

    checkpoint: str
    tools: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json.

    ``gate`` is ``passed``, or ``skipped`` where the exporter was told so; ``passes`` names the graph passes that ran,
    and ``traced`` says how much work each component was before them.
    """

    schema_version: int
    origin: Origin
    gate: str
    spec: ModelSpec
    profile: Profile
    sampling: Sampling
    passes: tuple[str, ...]
    traced: dict[str, Counts]
    components: tuple[ComponentEntry, ...]
    files: dict[str, FileEntry]

    def component(self, name: str) -> ComponentEntry:
        """Return the entry called ``name``."""
        return next(entry for entry in self.components if entry.name == name)

    def onnx_digests(self) -> dict[str, str]:
        """SHA-256 by path of every ONNX file, external data included."""
        return {path: self.files[path].sha256 for entry in self.components for path in entry.files}


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
        """Return in plain words what differs from ``old``; empty if the engines can stay."""
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
class Plan:
    """One built component: its file first, then any external data; how long the compiler took, its kernels by kind.

    ``activation_bytes`` is the scratch memory of one run, None where the compiler does not tell.
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
    plans: dict[str, Plan]
    files: dict[str, FileEntry]


def read_manifest(bundle: Path) -> Manifest:
    """Read ``bundle/manifest.json``. Raises BundleError if it is missing, damaged or of another schema."""
    if bundle.exists() and not bundle.is_dir():
        raise BundleError(
            str(bundle), expected="a bundle folder", found="a file", mend="pass the folder that `koala export` wrote"
        )
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(
            str(path),
            expected="the manifest of a bundle",
            found="no file" if bundle.is_dir() else "no folder",
            mend=f"make the bundle with `koala export SOURCE {bundle}`",
        )
    mend = f"export the bundle again with `koala export SOURCE {bundle}`"
    manifest = _read(Manifest, path, mend)
    _check_listed(path, {name for entry in manifest.components for name in entry.files}, manifest.files, mend)
    return manifest


def engine_folder(bundle: Path, target: str) -> Path:
    """Where the engines for ``target`` live."""
    return bundle / "engines" / target


def read_engine_record(bundle: Path, target: str) -> EngineRecord:
    """Read ``engine.json`` of a target. Raises TargetError if there are no engines for it, BundleError if damaged."""
    path = engine_folder(bundle, target) / ENGINE_RECORD
    mend = f"build them with `koala engines {bundle} --target {target}`"
    if not path.is_file():
        raise TargetError(f"target {target} of {bundle}", expected="built engines", found="none", mend=mend)
    record = _read(EngineRecord, path, mend)
    _check_listed(path, {name for plan in record.plans.values() for name in plan.files}, record.files, mend)
    return record


def _check_listed(path: Path, names: set[str], files: dict[str, FileEntry], mend: str) -> None:
    """Refuse a file that is to be loaded without a digest to check it by."""
    unlisted = sorted(names - files.keys())
    if unlisted:
        raise BundleError(f"{path}: files", expected=f"a digest of {unlisted[0]!r}", found="none", mend=mend)


def _read(cls: type[T], path: Path, mend: str) -> T:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(str(path), expected="JSON", found=f"a file that ends in error ({error})", mend=mend) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"{path}: schema_version",
            expected=str(SCHEMA_VERSION),
            found=str(version),
            mend="upgrade koala-trt, which is older than the bundle" if newer else mend,
        )
    try:
        return from_json(cls, data)
    except CodecError as error:
        raise BundleError(f"{path}: {error.field}", expected=error.expected, found=error.found, mend=mend) from None
