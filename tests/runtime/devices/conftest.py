"""A process with the null driver, and a bundle with plans for it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.nulldriver import compile_driver, null_process, scenarios


@pytest.fixture(scope="session")
def null_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The null driver, compiled."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("the null driver needs a C compiler and the Linux loader")
    if find_spec("cuda") is None:
        pytest.skip("the null driver needs cuda-bindings")
    return compile_driver(tmp_path_factory.mktemp("nulldriver"))


@pytest.fixture(scope="module")
def on_null_driver(null_library: Path) -> Iterator[Callable[..., Any]]:
    """Call a function in a process with the null driver, which mistakes of another file have not touched."""
    with null_process(null_library) as call:
        yield call


@pytest.fixture(scope="session")
def null_bundle(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with engines for cpu and rtx."""
    return scenarios.add_rtx_engines(bundle("koala-700m-like"), tmp_path_factory.mktemp("null") / "bundle")
