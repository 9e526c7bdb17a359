"""Files that a command writes at its end: made sure of at its start."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from koala_bundle.errors import ArgumentError
from koala_bundle.files import require_writable, write_atomic

if TYPE_CHECKING:
    from koala_runtime.marking.mark import Mark

_FIXES = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EROFS: "choose a folder on a disk that is not mounted read-only",
    errno.EISDIR: "name a file in it",
    errno.ENOSPC: "free some space or choose another disk",
}


def check_output_file(path: Path, parameter: str = "output") -> None:
    """Raise ArgumentError about ``parameter`` unless ``write_output`` could write a file at ``path``."""
    if not _followed(path).parent.is_dir():
        raise ArgumentError(
            parameter,
            expected="a file in a folder that exists",
            found=str(path),
            fix=f"make the folder {_followed(path).parent} first",
        )
    try:
        require_writable(_followed(path))
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        raise ArgumentError(
            parameter,
            expected="a file that can be written",
            found=f"{path} ({getattr(error, 'strerror', None) or error})",
            fix=_FIXES.get(number, "choose another file") if number else "choose another name",
        ) from error


def make_output_folder(path: Path, parameter: str = "output") -> None:
    """Make the folder ``path``. Raises ArgumentError about ``parameter`` if no file could be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            parameter,
            expected="a folder that can be made",
            found=f"{path} ({getattr(error, 'strerror', None) or error})",
            fix="choose another folder",
        ) from error
    check_output_file(path / "results.json", parameter)


def write_output(path: Path, data: bytes) -> None:
    """Write ``data``; where ``path`` is a link, to the file that it leads to."""
    write_atomic(_followed(path), data)


def _followed(path: Path) -> Path:
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):  # a loop; writing replaces the link itself
        return path


def read_mark(marked: bool, certificate: Path | None, key: Path | None, format: str, what: str) -> Mark | None:
    """Return how to mark files of a format, None for not at all; refuses before the work what could not be written.

    ``what`` is the parameter that decides on the format.
    """
    if not marked:
        if given := next((name for name, path in (("certificate", certificate), ("key", key)) if path), None):
            raise ArgumentError(given, expected="none without --mark", found="one", fix="pass --mark, too")
        return None
    from koala_runtime.marking.mark import Mark, check_mark

    mark = Mark(certificate, key)
    check_mark(mark, format, what)
    return mark
