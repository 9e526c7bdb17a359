"""The ground floor stands on the standard library alone."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import koala_bundle


def test_the_ground_floor_imports_the_standard_library_alone() -> None:
    paths = [*Path(koala_bundle.__file__).parent.glob("*.py")]
    assert paths
    for path in paths:
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        others = {module for module in modules if not module.startswith("koala_bundle.")}
        assert {module.split(".")[0] for module in others} <= sys.stdlib_module_names, path
