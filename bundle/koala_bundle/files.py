"""Files that are either whole or not there: digests, atomic writes, and folders that are built beside their place.

A killed process leaves old files or new ones, on POSIX and Windows. Locking against a second process is up to the
builders (``koala_export``, ``koala_engines``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from koala_bundle.codec import CodecError, from_json, to_json
from koala_bundle.errors import BundleError

_REFUSALS = {
    errno.ENOSPC: "free some space or choose another disk; nothing half-written is left",
    errno.EDQUOT: "free some space in your quota; nothing half-written is left",
    errno.EROFS: "choose a path on a disk that is not mounted read-only",
    errno.EACCES: "choose a path that you may write to",
    errno.EPERM: "choose a path that you may write to",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
}


@dataclass(frozen=True)
class FileEntry:
    """Digest (hexadecimal SHA-256) and size in bytes of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class _Finished:
    files: dict[str, FileEntry]
    facts: dict[str, str]


def file_entry(path: Path) -> FileEntry:
    """Read ``path`` and return its digest and size."""
    with path.open("rb") as stream:
        return FileEntry(hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def relative(root: Path, path: Path) -> str:
    """Return ``path`` below ``root`` with forward slashes, as manifests spell it on every system."""
    return path.relative_to(root).as_posix()


def inside(root: Path, name: str, fix: str) -> Path:
    """Return the path of the manifest's file ``name`` below ``root``; refuses a name that leads out of it."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or ":" in name or "\\" in name:
        raise BundleError(f"file name {name!r}", expected="a path inside the bundle", found="one outside", fix=fix)
    return root / name


def check_files(root: Path, files: dict[str, FileEntry], fix: str) -> None:
    """Raise BundleError naming the first of ``files`` below ``root`` that is missing or has other bytes."""
    for name, entry in files.items():
        path = inside(root, name, fix)
        if not path.is_file():
            raise BundleError(str(path), expected=f"a file of {entry.size} bytes", found="no file", fix=fix)
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(str(path), expected=f"{entry.size} bytes", found=f"{size} bytes", fix=fix)
        digest = file_entry(path).sha256
        if digest != entry.sha256:
            raise BundleError(str(path), expected=f"SHA-256 {entry.sha256[:16]}...", found=f"{digest[:16]}...", fix=fix)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds the old bytes or the new ones at every moment."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or JSON value: sorted keys, so that equal values are equal bytes."""
    write_atomic(path, (json.dumps(to_json(value), indent=2, sort_keys=True) + "\n").encode())


def link(old: Path, new: Path) -> None:
    """Make ``new`` the same file as ``old``, or a copy where the file system has no links."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def require_space(folder: Path, size: int) -> None:
    """Raise OSError (ENOSPC) unless ``size`` bytes fit on the disk of ``folder``.

    Called before work whose libraries report a full disk poorly, or not at all.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")


class Staging:
    """A folder that is built piece by piece beside its final place and then swapped in.

    A killed build leaves ``final`` as it was (or, killed inside the swap, absent until the next start restores it).
    Pieces recorded with ``finish`` survive, and a later build with the same ``key`` resumes after them.
    """

    def __init__(self, final: Path, key: str) -> None:
        self.final = final
        self.folder = final.with_name(f".{final.name}.partial")
        self._old = final.with_name(f".{final.name}.old")
        mark = self.folder / ".key"
        if not mark.is_file() or mark.read_text() != key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_atomic(mark, key.encode())

    def finished(self, piece: str) -> _Finished | None:
        """Return what ``finish`` recorded for ``piece``, or None if it has to be built."""
        record = self._record(piece)
        if not record.is_file():
            return None
        try:
            done = from_json(_Finished, json.loads(record.read_bytes()))
        except (ValueError, CodecError):
            return None
        sizes = {name: self.folder / name for name in done.files}
        whole = all(path.is_file() and path.stat().st_size == done.files[name].size for name, path in sizes.items())
        return done if whole else None

    def finish(self, piece: str, paths: Iterable[Path], **facts: str) -> _Finished:
        """Record that ``piece`` is complete and consists of ``paths``, with what else is to be kept about it."""
        done = _Finished({relative(self.folder, path): file_entry(path) for path in sorted(paths)}, facts)
        write_json(self._record(piece), done)
        return done

    def commit(self) -> None:
        """Swap the folder into its final place."""
        for leftover in [*self.folder.rglob(".*")]:  # records, and what libraries left when they were killed
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        for attempt in range(3):
            if self.final.exists():
                self.final.rename(self._old)
            try:
                self.folder.rename(self.final)
                break
            except OSError:  # a reader came between the two renames and put the old folder back
                if attempt == 2 or not self.final.exists():
                    raise
        _remove(self._old)

    def discard(self) -> None:
        """Remove what was built; for failures that building again would only repeat."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, piece: str) -> Path:
        return self.folder / f".{piece}.done"


def restore(final: Path) -> None:
    """Undo an interrupted swap: put the old folder back, or remove it if the new one is in place."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        old.rename(final)
    _remove(old)


def _remove(old: Path) -> None:
    """Delete the folder ``old`` under another name, so that half of it is never taken for the whole."""
    trash = old.with_suffix(".trash")
    if trash.exists():
        shutil.rmtree(trash, ignore_errors=True)
    if old.exists():
        old.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


@contextmanager
def prepare_output(path: Path, lock: Callable[[Path], AbstractContextManager[object]]) -> Iterator[None]:
    """Hold ``path`` for writing: one process at a time, parents created, OSErrors raised as BundleError.

    An interrupted swap is undone first.

    ``lock`` makes an inter-process lock from a file name (``filelock.FileLock``); the file goes when the work ends.
    """
    lock_file = path.with_name(f".{path.name}.lock")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(lock_file):
            try:
                restore(path)
                yield
            finally:
                with suppress(OSError):  # Windows keeps the file while it is open; the lock removes it there
                    lock_file.unlink(missing_ok=True)
    except BaseException as error:
        for parent in new_parents:
            with suppress(OSError):  # it stays if something is in it
                parent.rmdir()
        if not isinstance(error, OSError) or error.errno not in _REFUSALS:
            raise
        reason = str(error.strerror)
        raise BundleError(
            str(path),
            expected="a place that can be written",
            found=reason[:1].lower() + reason[1:],
            fix=_REFUSALS[error.errno],
        ) from error
