from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.cases.support import Case, copy_checkpoint, save_smallest

MB = 1_000_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What diffusers is warned of by numpy, and what it warns of itself, is diffusers' to follow.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"))


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint; not to be changed."""
    return save_smallest(tmp_path_factory.mktemp("smallest") / "checkpoint")


@pytest.fixture
def case(smallest: Path, tmp_path: Path) -> Case:
    """A copy of the smallest checkpoint, to be changed."""
    return Case(copy_checkpoint(smallest, tmp_path / "checkpoint"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a file system of its own on a folder; with ``options`` such as ``size=9``."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root on Linux")
    mounted: list[Path] = []

    def mount_on(place: Path, kind: str = "tmpfs", options: str = "size=200000000") -> Path:
        place.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", kind, "-o", options, kind, str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let tests mount a file system")
        mounted.append(place)
        return place

    yield mount_on
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
        assert not place.is_mount()
