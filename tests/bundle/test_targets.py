"""The table of targets is complete, and its facts fit together."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from koala_bundle.errors import ArgumentError
from koala_bundle.targets import CPU, SIMULATED, TARGETS, find_target


def test_each_target_is_found_by_its_name() -> None:
    for target in TARGETS:
        assert find_target(target.name) is target
        assert str(target) == target.name
    assert len({target.name for target in TARGETS}) == len({target.engines for target in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize("name", ["metal", "", "CPU", "simulated"])
def test_another_name_is_refused(name: str) -> None:
    wanted = f"target: expected tensorrt or rtx or cuda or cpu, found {name!r}; pass one of these."
    with pytest.raises(ArgumentError, match=f"^{re.escape(wanted)}$"):
        find_target(name)


def test_the_simulated_gpu_is_only_for_those_who_ask() -> None:
    """It runs the plans of the cpu target, as float32, and has memory of its own."""
    assert SIMULATED not in TARGETS
    assert find_target("simulated", simulated=True) is SIMULATED
    assert find_target("cpu", simulated=True) is CPU
    differ = {field.name for field in fields(CPU) if getattr(CPU, field.name) != getattr(SIMULATED, field.name)}
    assert differ == {"name", "has_device"}


def test_what_is_built_on_its_gpu_needs_one() -> None:
    for target in TARGETS:
        assert target.needs_gpu or not target.built_on_its_gpu
        assert target.has_device == target.needs_gpu
        assert target.half == ("float16" if target.needs_gpu else "float32")
