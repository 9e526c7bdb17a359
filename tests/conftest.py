"""Shared fixtures: small checkpoints, and bundles exported from them once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from koala_engines.build import build_engines
from koala_export.bundle import Options, export_bundle
from tests.support.checkpoints import SHAPES, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a shape's name to its checkpoint folder, saved on first use."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else save_checkpoint(SHAPES[name], folder)

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Callable[..., Path]:
    """Return a function from a shape's name and export options to a bundle with cpu engines, made on first use."""
    root = tmp_path_factory.mktemp("bundles")
    made: dict[tuple[str, Options], Path] = {}

    def get(name: str, **options: object) -> Path:
        defaults = {"height": 64, "width": 96, "precision": "fp32", "cfg": True, "num_inference_steps": 4}
        wanted = Options(**(defaults | options))  # type: ignore[arg-type]
        if (name, wanted) not in made:
            path = root / f"{name}-{len(made)}"
            export_bundle(str(checkpoint(name)), path, wanted)
            build_engines(path, "cpu")
            made[name, wanted] = path
        return made[name, wanted]

    return get
