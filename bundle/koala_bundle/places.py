"""Where a file of a bundle may be: in the bundle, under a name that means the same on every system.

Both names and links are looked at: a manifest's author chooses the names, an archive's author the links.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from koala_bundle.errors import BundleError

LONGEST_NAME = 200
"""Characters of a file's path below its root."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?<!\.)")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(r"(con|prn|aux|nul|conin|conout|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def inside(root: Path, name: str, fix: str, bundle: Path | None = None) -> Path:
    """Return the path of the manifest's file ``name`` below ``root``.

    Raises BundleError as ``check_name`` does, and for a link that leads out of ``bundle``, which defaults to ``root``.
    """
    check_name(name, fix)
    path = root / name
    refuse_link_out(path, root if bundle is None else bundle, fix)
    return path


def check_name(name: str, fix: str) -> None:
    """Raise BundleError for a name that leads out of its folder, or that some system reads in another way."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or ":" in name or "\\" in name:
        raise BundleError(
            f"file name {name[:LONGEST_NAME]!r}", expected="a path inside the bundle", found="one outside", fix=fix
        )
    parts = name.split("/")
    if len(name) > LONGEST_NAME or any(not _PART.fullmatch(part) or _RESERVED.fullmatch(part) for part in parts):
        raise BundleError(
            f"file name {name[:LONGEST_NAME]!r}",
            expected=f"at most {LONGEST_NAME} letters, digits and _ . + -",
            found="a name that not every system takes",
            fix=fix,
        )


def refuse_link_out(path: Path, bundle: Path, fix: str) -> None:
    """Raise BundleError if ``path`` is, or lies behind, a link that leads out of ``bundle``.

    A hub cache keeps the files of ``snapshots/<revision>`` in the folder ``blobs`` beside: links into it are taken.
    """
    try:
        home, place = bundle.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name with a NUL
        raise BundleError(repr(str(path)), expected="a file", found=str(error), fix=fix) from None
    cache = next((parent.parent for parent in (home, *home.parents) if parent.parent.name == "snapshots"), None)
    homes = (home,) if cache is None else (home, cache.parent / "blobs")
    if not any(place.is_relative_to(each) for each in homes):
        raise BundleError(
            str(path), expected="a file inside the bundle", found=f"a link to {place}", fix=f"copy it there, or {fix}"
        )
