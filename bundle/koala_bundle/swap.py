"""A folder that is built piece by piece and then takes the place of another, on whatever a file system allows.

Where folders can be renamed, two renames swap them, and a reader finds the old folder or the new one. A mount point, a
folder with a mount in it and one of an image's layers cannot be renamed: there the files are moved one by one, the
record (``manifest.json``, ``engine.json``) first out and last in, so that a folder with a record is always whole.
Readers write nothing: they look where a writer that was killed left the old folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from koala_bundle.codec import CodecError, from_json
from koala_bundle.errors import BundleError
from koala_bundle.files import FileEntry, beside, file_entry, relative, write_atomic, write_json

RECORDS = ("manifest.json", "engine.json")
_NOT_OURS = ("lost+found",)  # in the root of a disk
_PATIENCE = 0.2  # seconds that a reader gives a writer between its two renames

_REFUSALS = {
    errno.ENOSPC: "free some space or choose another disk; nothing half-written is left",
    errno.EDQUOT: "free some space in your quota; nothing half-written is left",
    errno.EROFS: "choose a path on a disk that is not mounted read-only",
    errno.EACCES: "choose a path that you may write to",
    errno.EPERM: "choose a path that you may write to",
    errno.ENOTDIR: "choose a path whose parents are folders",
    errno.EEXIST: "choose a path whose parents are folders",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@dataclass(frozen=True)
class _Finished:
    files: dict[str, FileEntry]
    facts: dict[str, str]


def real_path(path: Path) -> Path:
    """Return where ``path`` leads, absolute and without links. Raises BundleError if it leads nowhere."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name with a NUL
        raise BundleError(
            repr(str(path)), expected="a path of the file system", found=str(error), fix="choose another path"
        ) from None


def whole(folder: Path) -> Path:
    """Return where a reader finds ``folder``: there, or where a writer that was killed in its swap left the old one."""
    if folder.exists():
        return folder
    place = real_path(folder)
    old, until = beside(place, "old"), time.monotonic() + _PATIENCE
    while old.exists() and not place.exists():
        if time.monotonic() > until:
            return old
        time.sleep(_PATIENCE / 20)
    return folder


class Staging:
    """A folder that is built piece by piece and then swapped in; ``final`` is a path without links (``real_path``).

    A killed build leaves ``final`` as it was or, killed inside the swap, for the next start to restore.
    Pieces recorded with ``finish`` survive, and a later build with the same ``key`` resumes after them.
    """

    def __init__(self, final: Path, key: str) -> None:
        self.final = final
        self.folder = _hidden(final, "partial")
        if self.folder.is_symlink():  # nobody builds behind a link
            self.folder.unlink()
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
        complete = all(path.is_file() and path.stat().st_size == done.files[name].size for name, path in sizes.items())
        return done if complete else None

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
        if not _renamed(self.folder, self.final):
            _moved(self.folder, self.final)

    def discard(self) -> None:
        """Remove what was built; for failures that building again would only repeat."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self, piece: str) -> Path:
        return self.folder / f".{piece}.done"


def restore(final: Path) -> None:
    """Undo an interrupted swap: put the old folder or files back, or remove them if the new ones are in place."""
    old = beside(final, "old")
    if old.exists() and not final.exists():
        old.rename(final)
    _remove(old)
    if (inner := final / ".old").is_dir():
        if not any((final / record).is_file() for record in RECORDS):
            _move_files(inner, final)
        _remove(inner)


@contextmanager
def prepare_output(path: Path, lock: Callable[[Path], AbstractContextManager[object]]) -> Iterator[None]:
    """Hold ``path`` (without links) for writing: one process at a time, parents created, OSErrors as BundleError.

    An interrupted swap is undone first.

    ``lock`` makes an inter-process lock from a file name (``filelock.FileLock``); the file goes when the work ends.
    Disks that have no locks, which the lock tells by NotImplementedError, are used without.
    """
    new_parents: list[Path] = []
    try:
        new_parents += [parent for parent in path.parents if not parent.exists()]
        lock_file = _hidden(path, "lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            with suppress(NotImplementedError):
                held.enter_context(lock(lock_file))
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
        if not isinstance(error, OSError) or error.errno is None:
            raise
        reason = str(error.strerror)
        raise BundleError(
            str(path),
            expected="a place that can be written",
            found=reason[:1].lower() + reason[1:],
            fix=_REFUSALS.get(error.errno, "choose another path or disk"),
        ) from error


def _hidden(final: Path, kind: str) -> Path:
    """Return where ``kind`` of a folder is kept: beside it or, where that is another disk or read-only, in it."""
    within = final.is_dir() and (final.is_mount() or not os.access(final.parent, os.W_OK))
    return final / f".{kind}" if within else beside(final, kind)


def _renamed(new: Path, final: Path) -> bool:
    """Swap by two renames; return False, with everything as it was, where folders cannot be renamed."""
    old = beside(final, "old")
    if new.parent == final or (final.is_dir() and any(child.is_mount() for child in final.iterdir())):
        return False
    try:
        if final.exists():
            final.rename(old)
        new.rename(final)
    except OSError:
        if old.exists() and not final.exists():
            old.rename(final)
        return False
    _remove(old)
    return True


def _moved(new: Path, final: Path) -> None:
    """Swap file by file; puts the old ones back if one cannot be moved."""
    final.mkdir(exist_ok=True)
    old = final / ".old"
    try:
        old.mkdir(exist_ok=True)
        _move_files(final, old, record_first=True)
        _move_files(new, final)
    except OSError:
        with suppress(OSError):
            _move_files(old, final)
        raise
    shutil.rmtree(new, ignore_errors=True)
    _remove(old)


def _move_files(source: Path, target: Path, *, record_first: bool = False) -> None:
    """Move what is below ``source``, hidden names at its top excepted, over what is below ``target``."""
    tops = [top for top in source.iterdir() if not top.name.startswith(".") and top.name not in _NOT_OURS]
    files = [path for top in tops for path in ([top] if not top.is_dir() else _files_below(top))]
    files.sort(key=lambda path: (path.parent == source and path.name in RECORDS) != record_first)
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.replace(place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copy2(path, place)
            path.unlink()
    for top in tops:
        for folder in sorted((each for each in [top, *top.rglob("*")] if each.is_dir()), reverse=True):
            with suppress(OSError):  # a mount stays
                folder.rmdir()


def _files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _remove(old: Path) -> None:
    """Delete the folder ``old`` under another name, so that half of it is never taken for the whole."""
    trash = old.with_suffix(".trash")
    if trash.exists():
        shutil.rmtree(trash, ignore_errors=True)
    if old.exists():
        with suppress(OSError):
            old.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
        if old.exists():  # where folders cannot be renamed
            shutil.rmtree(old, ignore_errors=True)
