"""A picture as a loop of the caller's: the same picture as a call's, step by step, and it can be left at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline, Step, Steps
from koala_runtime.samplers import Schedule

SHAPE = "koala-700m-like"
CAT, DOG = "a photo of a cat", "a photo of a dog"
COUNT = 4
Latents = NDArray[np.float32]


@pytest.fixture(scope="module")
def pipe(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE), "cpu") as opened:
        yield opened


def settings(**arguments: Any) -> dict[str, Any]:
    return {"seed": 3, "num_inference_steps": COUNT, "output_type": "np"} | arguments


def draw(pipe: Pipeline, prompt: Any = CAT, **arguments: Any) -> NDArray[np.float32]:
    images: NDArray[np.float32] = pipe(prompt, **settings(**arguments)).images
    return images


def start(pipe: Pipeline, prompt: Any = CAT, **arguments: Any) -> Steps:
    return pipe.steps(prompt, **settings(**arguments))


def finish(steps: Steps) -> NDArray[np.float32]:
    for _ in steps:
        pass
    images: NDArray[np.float32] = steps.output.images
    return images


@pytest.mark.parametrize(
    ("target", "low_memory"), [("cpu", False), ("cpu", True), ("simulated", False), ("simulated", True)]
)
@pytest.mark.parametrize("count", [1, COUNT])
def test_a_loop_draws_what_a_call_draws(
    pipe: Pipeline, bundle: Callable[..., Path], target: str, low_memory: bool, count: int
) -> None:
    with Pipeline(bundle(SHAPE), target, low_memory=low_memory) as other:
        steps = start(other, num_inference_steps=count)
        seen = [(step.index, step.count, step.timestep) for step in steps]
        timesteps = pipe.scheduler.table(Schedule(count)).timesteps
        assert seen == [(index, count, float(timestep)) for index, timestep in enumerate(timesteps)]
        called = pipe(CAT, **settings(num_inference_steps=count))
        assert np.array_equal(steps.output.images, called.images)
        assert steps.output.seed == called.seed
        assert [recipe.prompt for recipe in steps.output.recipes] == [CAT]
        assert steps.output.timings is None


def test_nothing_is_drawn_before_the_first_step_is_asked_for(pipe: Pipeline) -> None:
    steps = start(pipe)
    assert draw(pipe, seed=9).shape == (1, 64, 96, 3), "the pipeline is free"
    assert np.array_equal(finish(steps), draw(pipe))


def test_arguments_are_checked_at_once(pipe: Pipeline) -> None:
    with pytest.raises(ArgumentError, match="num_inference_steps: expected a whole number"):
        pipe.steps(CAT, num_inference_steps=0)


def test_latents_are_copies_of_those_that_a_callback_sees(pipe: Pipeline) -> None:
    called: list[Latents] = []
    draw(pipe, callback_on_step_end=lambda *arguments: called.append(arguments[3]["latents"]))
    steps, looped = start(pipe), []
    for step in steps:
        looped.append(step.latents)
        step.latents[...] = 0  # a copy: this changes nothing
    assert all(latents.shape == (1, 4, 8, 12) and latents.dtype == np.float32 for latents in looped)
    assert len({latents.tobytes() for latents in looped}) == COUNT
    for one, other in zip(looped, called, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(steps.output.images, draw(pipe))


@pytest.mark.parametrize("at", [0, 2, COUNT - 1])
@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_the_next_step_starts_from_assigned_latents(bundle: Callable[..., Path], target: str, at: int) -> None:
    """As from what a callback returns; nothing of the seed is left, and a loop without it draws another picture."""

    def assigned(seed: int) -> NDArray[np.float32]:
        steps = start(pipe, seed=seed)
        for step in steps:
            if step.index == at:
                step.latents = np.full_like(step.latents, 0.25)
                assert (step.latents == 0.25).all()
        images: NDArray[np.float32] = steps.output.images
        return images

    def returned(_: Pipeline, index: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": np.full_like(tensors["latents"], 0.25)} if index == at else {}

    with Pipeline(bundle(SHAPE), target) as pipe:
        pictures = [assigned(0), assigned(1), draw(pipe, seed=2, callback_on_step_end=returned)]
        assert np.array_equal(pictures[0], pictures[1])
        assert np.array_equal(pictures[0], pictures[2])
        assert not np.array_equal(pictures[0], finish(start(pipe, seed=0)))


def test_latents_of_another_shape_are_refused_and_the_loop_goes_on(pipe: Pipeline) -> None:
    steps = start(pipe)
    for step in steps:
        for wrong, found in ((np.zeros((1, 4, 8, 8)), r"\[1, 4, 8, 8\]"), (np.full((1, 4, 8, 12), np.nan), "NaN or")):
            with pytest.raises(ArgumentError, match=rf"^latents: expected .*, found {found}"):
                step.latents = wrong
    assert np.array_equal(steps.output.images, draw(pipe))


@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_previews_end_in_the_picture(bundle: Callable[..., Path], target: str) -> None:
    with Pipeline(bundle(SHAPE), target) as pipe:
        steps = start(pipe)
        previews = [step.preview() for step in steps]
        assert [(preview.shape, preview.dtype) for preview in previews] == [((1, 64, 96, 3), np.uint8)] * COUNT
        assert len({preview.tobytes() for preview in previews}) == COUNT
        assert np.array_equal(previews[-1], np.round(steps.output.images * 255).astype(np.uint8))
        assert np.array_equal(steps.output.images, draw(pipe)), "looking changes nothing"


# --- a loop that is left early


def test_a_loop_may_be_broken_off(pipe: Pipeline) -> None:
    before = draw(pipe)
    for step in start(pipe, seed=8):
        if step.index == 1:
            break
    assert np.array_equal(draw(pipe), before)


def test_what_is_closed_is_over(pipe: Pipeline) -> None:
    before = draw(pipe)
    steps = start(pipe, seed=8)
    assert next(steps).index == 0
    steps.close()
    steps.close()
    assert [*steps] == []
    with pytest.raises(ArgumentError, match=r"^output: expected all steps done, found steps left; let the loop"):
        _ = steps.output
    with start(pipe, seed=8) as steps:
        next(steps)
    assert np.array_equal(draw(pipe), before)


@pytest.mark.parametrize("held", [False, True])
def test_an_error_in_the_body_ends_the_loop(pipe: Pipeline, held: bool) -> None:
    before = draw(pipe)
    with pytest.raises(ZeroDivisionError):
        if held:
            with start(pipe, seed=8) as steps:
                for step in steps:
                    1 // (step.index - 2)
        else:
            for step in start(pipe, seed=8):
                1 // (step.index - 2)
    assert np.array_equal(draw(pipe), before)


def test_a_closed_pipeline_starts_no_loop(bundle: Callable[..., Path]) -> None:
    pipe = Pipeline(bundle(SHAPE), "cpu")
    steps = start(pipe)
    pipe.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(steps)


# --- calls beside a loop


def test_a_call_or_a_close_inside_the_loop_is_refused(pipe: Pipeline) -> None:
    """It would wait for itself. The loop goes on all the same."""
    steps = start(pipe)
    for _ in steps:
        for forbidden in (lambda: draw(pipe), pipe.close, lambda: next(start(pipe))):
            with pytest.raises(RuntimeError, match="by its own callback_on_step_end or loop"):
                forbidden()
    assert np.array_equal(steps.output.images, draw(pipe))


def test_another_thread_waits_for_the_end_of_the_loop(pipe: Pipeline) -> None:
    wanted, drawn = [draw(pipe), draw(pipe, DOG)], []
    for early in (False, True):
        steps = start(pipe)
        next(steps)
        thread = threading.Thread(target=lambda: drawn.append(draw(pipe, DOG)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert len(drawn) == early
        if early:
            steps.close()
        else:
            assert np.array_equal(finish(steps), wanted[0])
        thread.join(60)
        assert not thread.is_alive()
        assert np.array_equal(drawn[-1], wanted[1])


def test_two_loops_take_turns(pipe: Pipeline) -> None:
    """Of two threads, each step by step; neither sees the other's latents."""
    wanted = {prompt: draw(pipe, prompt) for prompt in (CAT, DOG)}
    drawn: dict[str, NDArray[np.float32]] = {}
    threads = [threading.Thread(target=lambda p=p: drawn.update({p: finish(start(pipe, p))})) for p in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert drawn.keys() == wanted.keys()
    assert all(np.array_equal(drawn[prompt], wanted[prompt]) for prompt in wanted)


# --- several batches


def test_more_prompts_than_the_batch_are_drawn_batch_after_batch(bundle: Callable[..., Path]) -> None:
    prompts = [CAT, DOG, "a koala"]
    with Pipeline(bundle(SHAPE, batch=2), "cpu") as pipe:
        steps, seen = start(pipe, prompts), list[tuple[int, tuple[int, ...], tuple[int, ...]]]()
        for step in steps:
            seen.append((step.index, step.latents.shape, step.preview().shape))
        once = [(index, (2, 4, 8, 12), (2, 64, 96, 3)) for index in range(COUNT)]
        assert seen == 2 * once
        assert steps.output.images.shape == (3, 64, 96, 3)
        assert np.array_equal(steps.output.images, draw(pipe, prompts))


def test_cancelling_ends_after_this_batch(pipe: Pipeline) -> None:
    steps, seen = start(pipe, [CAT, DOG, CAT]), list[Step]()
    for step in steps:
        seen.append(step)
        if len(seen) == COUNT + 1:
            pipe.cancel()
    assert len(seen) == 2 * COUNT, "the picture that is being drawn is finished"
    assert np.array_equal(steps.output.images, draw(pipe, [CAT, DOG, CAT])[:2])
    assert len(finish(start(pipe, [CAT, DOG]))) == 2, "the next loop draws everything"


def test_there_is_no_output_before_the_end(pipe: Pipeline) -> None:
    steps = start(pipe)
    for _ in range(COUNT):
        with pytest.raises(ArgumentError, match="output: expected all steps done, found steps left"):
            _ = steps.output
        next(steps)
    with pytest.raises(ArgumentError, match="output: expected all steps done"):
        _ = steps.output  # the picture is decoded when the loop asks for a step that is not there
    with pytest.raises(StopIteration):
        next(steps)
    images = steps.output.images
    with pytest.raises(StopIteration):
        next(steps)
    assert steps.output.images is images
