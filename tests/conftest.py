"""Shared fixtures: small checkpoints, and bundles exported from them (``tests.support.bundles``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koala_bundle.checked import CACHE_VARIABLE
from tests.support import bundles

# Files that take longest, longest first. Workers take whole files in turn, so that what comes last should be short.
# The first two ask for different bundles: otherwise one worker would wait for what the other makes.
LONGEST = (
    "system/test_full_size.py",
    "system/test_readme.py",
    "system/test_interruption.py",
    "examples/test_koala_tiny.py",
    "export/test_reproducible.py",
    "bench/test_bench.py",
    "export/passes/test_passes.py",
    "verify/test_verify.py",
    "system/test_parity.py",
    "runtime/test_executor.py",
    "export/test_gate.py",
    "system/test_errors.py",
    "engines/test_kernels.py",
    "runtime/test_simulated_mistakes.py",
    "runtime/test_steps.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    root = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(root).as_posix(), len(order)))


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the runtime remembers of checked files out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """Return a function from a shape's name to its checkpoint folder, saved on first use."""
    return bundles.checkpoint


@pytest.fixture(scope="session")
def bundle() -> Callable[..., Path]:
    """Return a function from a shape's name and export options to a bundle with cpu engines, made on first use."""
    return bundles.bundle
