"""manifest.json: what a bundle is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from koala_bundle.codec import CodecError, from_json, parse_json
from koala_bundle.consistency import find_misfit
from koala_bundle.counts import NOTHING, Counts
from koala_bundle.errors import BundleError
from koala_bundle.files import SEAL, FileEntry, read_bytes, seal_of
from koala_bundle.places import check_name, refuse_link_out
from koala_bundle.spec import ModelSpec, Profile, Sampling
from koala_bundle.swap import whole
from koala_bundle.tensors import Component

SCHEMA_VERSION = 8
MANIFEST = "manifest.json"
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER_FILE = "tokenizer.json"
MOST_RECORD_BYTES = 16_000_000
"""Of manifest.json or engine.json; those of KOALA-1B have 0.3 MB."""

T = TypeVar("T")


@dataclass(frozen=True)
class ComponentEntry(Component):
    """A component in a bundle, its files (the ONNX graph first, then its external data), and how much work it is.

    ``key`` is a digest of what the component depends on that was traced, from which passes may have made several.
    """

    files: tuple[str, ...] = ()
    counts: Counts = NOTHING
    key: str = ""


@dataclass(frozen=True)
class LoraEntry:
    """A LoRA that was added to the weights: its file's name and SHA-256, and how strongly it was added."""

    name: str
    sha256: str
    scale: float

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True)
class ModelOrigin:
    """A model that is not the checkpoint's own: the folder or hub name that was given, and the digest of its files.

    Two are equal if their files are, whatever they were called.
    """

    source: str = field(compare=False)
    digest: str


@dataclass(frozen=True)
class Origin:
    """What a bundle was exported from, and the versions of what converted it.

    ``checkpoint`` is a digest of the checkpoint's files and of learned words; ``loras`` are in the order in which they
    were added. ``vae`` takes the place of the checkpoint's VAE, ``preview_decoder`` is what previews are decoded with.
    """

    checkpoint: str
    tools: dict[str, str]
    loras: tuple[LoraEntry, ...] = ()
    vae: ModelOrigin | None = None
    preview_decoder: ModelOrigin | None = None


@dataclass(frozen=True)
class PassChange:
    """What a graph pass changed: how much work a component was before it, and what it became, by component."""

    name: str
    component: str
    before: Counts
    after: dict[str, Counts]


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json.

    ``gate`` is ``passed``, or ``skipped`` if the export ran without it. ``passes`` names the passes that ran,
    ``traced`` says how much work each component was before the graph passes, and ``changes`` what each of these
    changed, in their order.
    """

    schema_version: int
    origin: Origin
    gate: str
    spec: ModelSpec
    profile: Profile
    sampling: Sampling
    passes: tuple[str, ...]
    traced: dict[str, Counts]
    changes: tuple[PassChange, ...]
    components: tuple[ComponentEntry, ...]
    files: dict[str, FileEntry]

    def component(self, name: str) -> ComponentEntry:
        """Return the entry called ``name``."""
        return next(entry for entry in self.components if entry.name == name)

    def onnx_digests(self) -> dict[str, str]:
        """SHA-256 by path of every ONNX file, external data included."""
        return {path: self.files[path].sha256 for entry in self.components for path in entry.files}


def read_manifest(bundle: Path) -> Manifest:
    """Read ``bundle/manifest.json``. Raises BundleError if it is missing, damaged or of another schema."""
    return open_manifest(bundle)[0]


def open_manifest(bundle: Path) -> tuple[Manifest, str]:
    """Read ``bundle/manifest.json`` as ``read_manifest`` does; return with it the SHA-256 of its bytes."""
    if bundle.exists() and not bundle.is_dir():
        raise BundleError(
            str(bundle), expected="a bundle folder", found="a file", fix="pass the folder that `koala export` wrote"
        )
    path = whole(bundle) / MANIFEST
    if not path.is_file():
        raise BundleError(
            str(path),
            expected="the manifest of a bundle",
            found="no file" if bundle.is_dir() else "no folder",
            fix=f"make the bundle with `koala export SOURCE {bundle}`",
        )
    fix = f"export the bundle again with `koala export SOURCE {bundle}`"
    manifest, digest = read_record(Manifest, path, fix, path.parent)
    if misfit := find_misfit(manifest.spec, manifest.profile, manifest.sampling, manifest.components):
        raise BundleError(f"{path}: {misfit.field}", expected=misfit.expected, found=misfit.found, fix=fix)
    check_listed(path, [entry.files for entry in manifest.components], manifest.files, fix)
    return manifest, digest


def check_listed(path: Path, sets: Iterable[tuple[str, ...]], files: dict[str, FileEntry], fix: str) -> None:
    """Refuse a file that is to be loaded without a digest to check it by, and a set of files that has none."""
    names = [*sets]
    if not all(names):
        raise BundleError(f"{path}: files", expected="a file of every component", found="none of one", fix=fix)
    unlisted = sorted({name for each in names for name in each} - files.keys())
    if unlisted:
        raise BundleError(f"{path}: files", expected=f"a digest of {unlisted[0][:200]!r}", found="none", fix=fix)
    for name in files:
        check_name(name, fix)


def read_record(cls: type[T], path: Path, fix: str, bundle: Path) -> tuple[T, str]:
    """Read a JSON file of this schema version as the dataclass ``cls``; return with it the SHA-256 of its bytes.

    Raises BundleError, with ``fix`` as advice, also for a link that leads out of ``bundle``.
    """
    refuse_link_out(path, bundle, fix)
    content = read_bytes(path, MOST_RECORD_BYTES, fix)
    try:
        data = parse_json(content)
    except ValueError as error:
        raise BundleError(str(path), expected="JSON", found=f"a file that ends in error ({error})", fix=fix) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION or not isinstance(version, int):
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"{path}: schema_version",
            expected=str(SCHEMA_VERSION),
            found=f"{version!s:.80}",
            fix="upgrade koala-trt, which is older than the bundle" if newer else fix,
        )
    seal = data.pop(SEAL, None)
    try:
        record = from_json(cls, data)
    except CodecError as error:
        raise BundleError(f"{path}: {error.field}", expected=error.expected, found=error.found, fix=fix) from None
    if seal != seal_of(data):
        raise BundleError(
            f"{path}: {SEAL}", expected="the digest of what the file says", found="another: it was changed", fix=fix
        )
    return record, hashlib.sha256(content).hexdigest()
