"""What ``from koala_runtime import *`` brings: the pipeline, and every error that a product catches."""

from __future__ import annotations

from typing import Any

import pytest

import koala_bundle.errors
import koala_runtime


def test_the_runtime_offers_what_it_lists() -> None:
    exec("from koala_runtime import *", offered := dict[str, Any]())
    assert offered.keys() - {"__builtins__"} == set(koala_runtime.__all__)
    classes = {name: kind for name, kind in vars(koala_bundle.errors).items() if isinstance(kind, type)}
    errors = {name for name, kind in classes.items() if issubclass(kind, Exception)}
    assert errors <= offered.keys(), "every error that a product catches"
    assert {"Pipeline", "PipelineOutput", "Steps", "read_recipe"} <= offered.keys()
    with pytest.raises(AttributeError, match="module 'koala_runtime' has no attribute 'pipe'"):
        _ = koala_runtime.pipe
