"""Copies of bundles that a test may change. Without torch: the processes that read strangers' input import it."""

from __future__ import annotations

import shutil
from pathlib import Path

from koala_bundle.targets import CPU


def copy_bundle(source: Path, target: Path) -> Path:
    """Copy a bundle with its cpu engines alone, whatever other tests have built beside them; return ``target``.

    The files are copies: ``onnx`` refuses to read weights from a file that has several hard links.
    """
    others = shutil.ignore_patterns(".*")

    def ignore(folder: str, names: list[str]) -> set[str]:
        engines = set(names) - {str(CPU)} if Path(folder) == source / "engines" else set()
        return engines | others(folder, names)

    return shutil.copytree(source, target, ignore=ignore)
