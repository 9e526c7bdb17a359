"""Remembers which files had the digests of their manifest, so that a bundle of gigabytes is read once, not each time.

A record holds for each file its size, inode and times when it was read whole. It lies in the user's cache folder,
since readers write nothing into a bundle, and it is a help, never a need: one that is missing, damaged, of another
user or cannot be written costs a check. Nothing is deserialised from it but numbers and digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from koala_bundle.codec import CodecError, from_json
from koala_bundle.files import FileEntry, check_files, write_json
from koala_bundle.places import inside

CACHE_VARIABLE = "KOALA_CACHE_DIR"
_KEPT = 200  # records; the oldest go first
_RULES = "2"  # another number for every change of what files are examined for, so that they are examined again
_SETTLED_NS = 2 * 10**9  # FAT's clock ticks every 2 s: of a younger file the time cannot tell a second change


@dataclass(frozen=True)
class _Checked:
    sha256: str
    size: int
    inode: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True)
class _Record:
    """``root`` is the folder that the names of ``files`` are relative to."""

    root: str
    files: dict[str, _Checked]


def cache_folder() -> Path:
    """Return this user's cache folder of koala-trt: $KOALA_CACHE_DIR, or a folder where the system keeps caches."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "koala-trt"


def _accept(name: str) -> None:
    """Take any content."""


def check_files_once(
    root: Path,
    files: dict[str, FileEntry],
    fix: str,
    *,
    verify: bool = False,
    bundle: Path | None = None,
    examine: Callable[[str], None] = _accept,
) -> None:
    """Check as ``check_files`` does, but read only files that were not checked before or have changed since.

    A file has changed if its size, inode, modification time or (on POSIX, where nobody can set it) change time has.
    ``verify`` reads all of them again. ``examine`` looks at the content of a file with the right digest, by its name,
    and raises BundleError for what must not reach a parser; that, too, is remembered. Raises BundleError.
    """
    path = _record_path(root)
    known = {} if verify else _read(path, root)
    before = {name: _look(inside(root, name, fix, bundle), entry.sha256) for name, entry in files.items()}
    unknown = {
        name: entry
        for name, entry in files.items()
        if (found := before[name]) is None or found != known.get(name) or found.size != entry.size
    }
    if not unknown:
        return
    check_files(root, unknown, fix, bundle)
    for name in unknown:
        examine(name)
    settled = time.time_ns() - _SETTLED_NS
    for name in unknown:
        found = before[name]
        if found is None or max(found.modified_ns, found.changed_ns) >= settled:
            continue
        if found == _look(root / name, found.sha256):  # not written while it was read
            known[name] = found
    _write(path, _Record(_key(root), known))


def _look(path: Path, digest: str) -> _Checked | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Checked(digest, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _key(root: Path) -> str:
    return str(root.resolve())


def _record_path(root: Path) -> Path | None:
    """Return where the record of ``root`` is; None where there is no home to keep it in."""
    try:
        folder = cache_folder()
    except RuntimeError:
        return None
    return folder / "checked" / f"{_RULES}-{hashlib.sha256(_key(root).encode()).hexdigest()[:32]}.json"


def _read(path: Path | None, root: Path) -> dict[str, _Checked]:
    """Return what is known of the files below ``root``; nothing if the record is not to be trusted."""
    if path is None:
        return {}
    try:
        if sys.platform != "win32" and path.stat().st_uid != os.geteuid():
            return {}
        record = from_json(_Record, json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError, CodecError):
        return {}
    return record.files if record.root == _key(root) else {}


def _write(path: Path | None, record: _Record) -> None:
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, record)
        records = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in records[:-_KEPT]:
            old.unlink(missing_ok=True)
