"""Shared fixtures: small checkpoints, and bundles exported from them once per test run, for all of its workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from koala_bundle.targets import CPU
from koala_engines.build import build_engines
from koala_export.exporter import ExportOptions, export_bundle
from tests.support.checkpoints import SHAPES, save_checkpoint


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run see."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def checkpoint(shared: Path) -> Callable[[str], Path]:
    """Return a function from a shape's name to its checkpoint folder, saved on first use."""

    def get(name: str) -> Path:
        folder = shared / name
        with FileLock(f"{folder}.lock"):
            return folder if folder.exists() else save_checkpoint(SHAPES[name], folder)

    return get


@pytest.fixture(scope="session")
def bundle(shared: Path, checkpoint: Callable[[str], Path]) -> Callable[..., Path]:
    """Return a function from a shape's name and export options to a bundle with cpu engines, made on first use."""

    def get(name: str, **options: object) -> Path:
        defaults = {"height": 64, "width": 96, "precision": "fp32", "cfg": True, "num_inference_steps": 4}
        told = "-".join(str(value) for pair in sorted(options.items()) for value in pair)
        path = shared / "-".join(filter(None, ("bundle", name, told)))
        with FileLock(f"{path}.lock"):
            export_bundle(str(checkpoint(name)), path, ExportOptions(**(defaults | options)))  # type: ignore[arg-type]
            build_engines(path, CPU)
        return path

    return get
