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
from koala_runtime.run import Run
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


def history_of_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(program: programs.Program) -> programs.Program:
        first = program.steps[0].tensors[programs.HISTORY]
        steps = (replace(call, tensors={**call.tensors, programs.HISTORY: first}) for call in program.steps)
        return replace(program, steps=tuple(steps))

    changed_program(monkeypatch, change)


def history_that_nobody_clears(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(program: programs.Program) -> programs.Program:
        first = program.steps[0].tensors
        left = {**first, programs.HISTORY: first[programs.NEXT_HISTORY]}
        return replace(program, steps=(replace(program.steps[0], tensors=left), *program.steps[1:]))

    changed_program(monkeypatch, change)


def noise_of_the_first_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(program: programs.Program) -> programs.Program:
        first = program.steps[0].tensors[programs.NOISE]
        steps = (replace(call, tensors={**call.tensors, programs.NOISE: first}) for call in program.steps)
        return replace(program, steps=tuple(steps))

    changed_program(monkeypatch, change)


def noise_of_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sampler without noise reads in its place has to hold numbers: zero times NaN is NaN."""

    def change(program: programs.Program) -> programs.Program:
        unset = replace(program.steps[0].tensors[programs.NOISE], offset=program.images.offset)
        steps = (replace(call, tensors={**call.tensors, programs.NOISE: unset}) for call in program.steps)
        return replace(program, steps=tuple(steps))

    changed_program(monkeypatch, change)


def noise_of_another_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Run.fill
    kept = dict[str, Any]()

    def change(self: Run, inputs: Any) -> None:
        kept.setdefault("noise", inputs["noise"])
        fill(self, {**inputs, **kept})

    monkeypatch.setattr(Run, "fill", change)


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


SAMPLED = [
    (history_of_the_first_step, "dpmpp_2m"),
    (history_of_the_first_step, "heun"),
    (history_that_nobody_clears, "unipc"),
    (noise_of_the_first_row, "euler_a"),
    (noise_of_no_one, "dpmpp_2m"),
    (noise_of_another_sampler, "dpmpp_2m_sde"),
]


@pytest.mark.parametrize(("mistake", "name"), SAMPLED, ids=lambda each: getattr(each, "__name__", each))
def test_a_mistake_with_what_euler_lacks_shows(
    tiny: Path, mistake: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """History and noise of other samplers, on pictures whose second is captured."""
    with Pipeline(tiny, "cpu") as cpu:
        wanted = draw(cpu, scheduler=name, num_inference_steps=3)
    with simulated(tiny) as gpu:
        draw(gpu, OTHER, scheduler=name, num_inference_steps=3, seed=4)
        assert np.array_equal(draw(gpu, scheduler=name, num_inference_steps=3), wanted)
    mistake(monkeypatch)
    with pytest.raises((AssertionError, KoalaError)), simulated(tiny) as gpu:
        draw(gpu, OTHER, scheduler=name, num_inference_steps=3, seed=4)
        assert np.array_equal(draw(gpu, scheduler=name, num_inference_steps=3), wanted)
