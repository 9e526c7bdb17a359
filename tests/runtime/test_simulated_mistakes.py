"""Seeded mistakes show on the simulated GPU: each gives another picture there, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import koala_runtime.pipeline
from koala_bundle.errors import KoalaError
from koala_runtime import Pipeline
from koala_runtime import program as programs
from koala_runtime.executor import Executor
from tests.support.simulated import OTHER, assert_equal_to_cpu, draw, simulated


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    place, taken = programs._place, {}

    def misplaced(tensor: Any, offset: int, *rest: Any) -> Any:
        at = place(tensor, taken.get("hidden_states", offset) if tensor.name == "text_embeds" else offset, *rest)
        taken[tensor.name] = at.offset
        return at

    monkeypatch.setattr(programs, "_place", misplaced)


def changed_program(monkeypatch: pytest.MonkeyPatch, change: Callable[[programs.Program], programs.Program]) -> None:
    make_program = programs.make_program
    monkeypatch.setattr(koala_runtime.pipeline, "make_program", lambda *a, **k: change(make_program(*a, **k)))


def swapped_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_program(monkeypatch, lambda program: replace(program, steps=program.steps[::-1]))


def late_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_program(monkeypatch, lambda p: replace(p, encode=(p.encode[2], p.encode[0], p.encode[1])))


def stale_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = programs.Placement.row
    monkeypatch.setattr(programs.Placement, "row", lambda self, index, shape: row(self, 0, shape))


def latents_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(program: programs.Program) -> programs.Program:
        first = program.latents[0]
        both = {programs.LATENTS: first, programs.NEXT_LATENTS: first}
        steps = tuple(replace(call, tensors={**call.tensors, **both}) for call in program.steps)
        decode = replace(program.decode, tensors={**program.decode.tensors, programs.LATENTS: first})
        return replace(program, steps=steps, decode=decode)

    changed_program(monkeypatch, change)


def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything(set[str]):
        def __contains__(self, key: object) -> bool:
            return True

    monkeypatch.setattr("koala_runtime.run.set", lambda: Everything(), raising=False)


def small_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    have = Executor.load_only

    def shrunk(self: Executor, names: Any) -> None:
        have(self, names)
        most = self.device.live[self._activations]
        self.device.release(self._activations)
        self._activations = self.device.allocate(most - 4096)

    monkeypatch.setattr(Executor, "load_only", shrunk)


MISTAKES = [overlapping, swapped_steps, late_text_encoder, stale_table, latents_in_place, no_warm_up, small_arena]


@pytest.fixture(scope="module")
def wanted(tiny: Path) -> NDArray[np.float32]:
    """The picture; without a mistake the simulated GPU draws what the processor draws."""
    assert_equal_to_cpu(tiny)
    with Pipeline(tiny, "cpu") as cpu:
        return draw(cpu)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(
    tiny: Path, wanted: NDArray[np.float32], mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises((AssertionError, KoalaError)), simulated(tiny) as gpu:
        draw(gpu, OTHER)
        assert np.array_equal(draw(gpu), wanted)
