"""Files that are either whole or not there: digests and atomic writes.

A killed process leaves the old file or the new one, on POSIX and Windows; ``swap`` does the same for folders.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from koala_bundle.codec import to_json
from koala_bundle.errors import BundleError
from koala_bundle.places import inside

SEAL = "sha256"
"""The key of a file's digest of itself: a record that was changed by hand is told from one that was written."""
_LONGEST_NAME = 250  # bytes; common file systems take 255, and some names get longer by a few


FileState: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class FileEntry:
    """Digest (hexadecimal SHA-256) and size in bytes of one file."""

    sha256: str
    size: int


def file_entry(path: Path) -> FileEntry:
    """Read ``path`` and return its digest and size."""
    with path.open("rb") as stream:
        return FileEntry(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def file_state(path: Path) -> FileState | None:
    """Return size, modification time in ns and inode, which change when a file does; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def relative(root: Path, path: Path) -> str:
    """Return ``path`` below ``root`` with forward slashes, as manifests spell it on every system."""
    return path.relative_to(root).as_posix()


def read_bytes(path: Path, most: int, fix: str) -> bytes:
    """Return the content of a file. Raises BundleError if it has more than ``most`` bytes."""
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise BundleError(str(path), expected=f"at most {most:,} bytes", found="more", fix=fix)
    return data


def check_files(root: Path, files: dict[str, FileEntry], fix: str, bundle: Path | None = None) -> None:
    """Raise BundleError naming the first of ``files`` below ``root`` that is missing or has other bytes.

    ``bundle`` is the folder that links may not lead out of; it defaults to ``root``.
    """
    for name, entry in files.items():
        path = inside(root, name, fix, bundle)
        if not path.is_file():
            raise BundleError(str(path), expected=f"a file of {entry.size} bytes", found="no file", fix=fix)
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(str(path), expected=f"{entry.size} bytes", found=f"{size} bytes", fix=fix)
        digest = file_entry(path).sha256
        if digest != entry.sha256:
            raise BundleError(str(path), expected=f"SHA-256 {entry.sha256[:16]}...", found=f"{digest[:16]}...", fix=fix)


def beside(path: Path, kind: str) -> Path:
    """Return a hidden name beside ``path``, such as ``.NAME.partial``; a digest replaces a NAME that is too long."""
    name = f".{path.name}.{kind}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{kind}"
    return path.with_name(name)


def require_writable(path: Path) -> None:
    """Raise OSError unless ``write_atomic`` could write a file at ``path``; leaves nothing behind."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EISDIR, "something that is not a file")
    probe = beside(path, "partial")
    _open_new(probe).close()
    probe.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds the old bytes or the new ones at every moment."""
    partial = beside(path, "partial")
    try:
        with _open_new(partial) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_new(path: Path) -> BinaryIO:
    """Make a file; a link that somebody put there is removed, not followed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or JSON value: sorted keys, so that equal values are equal bytes."""
    write_atomic(path, (json.dumps(to_json(value), indent=2, sort_keys=True) + "\n").encode())


def write_sealed(path: Path, value: Any) -> None:
    """Write a dataclass or JSON object as ``write_json`` does, with its own digest under ``SEAL``."""
    data = to_json(value)
    write_json(path, data | {SEAL: seal_of(data)})


def seal_of(data: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON object without its seal, however it is spaced and ordered."""
    content = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def link(old: Path, new: Path) -> None:
    """Make ``new`` the same file as ``old``, or a copy where the file system has no links."""
    new.unlink(missing_ok=True)
    try:
        os.link(old.resolve(), new)  # a hard link to a relative link would lead elsewhere
    except OSError:
        shutil.copyfile(old, new)


def require_space(folder: Path, size: int) -> None:
    """Raise OSError (ENOSPC) unless ``size`` bytes fit on the disk of ``folder``.

    Called before work whose libraries report a full disk poorly, or not at all.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")
