"""Shared fixtures: small checkpoints, and bundles exported from them (``tests.support.bundles``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import bundles


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """Return a function from a shape's name to its checkpoint folder, saved on first use."""
    return bundles.checkpoint


@pytest.fixture(scope="session")
def bundle() -> Callable[..., Path]:
    """Return a function from a shape's name and export options to a bundle with cpu engines, made on first use."""
    return bundles.bundle
