"""What products ask of a call on a device: pictures that stay there, streams, timings, previews, an early end."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError
from koala_runtime import Pipeline
from koala_runtime.run import COPY_IN, COPY_OUT
from tests.support.simulated import OTHER, PROMPT, STEPS, device, draw, simulated


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


def test_pictures_can_stay_on_the_device(tiny: Path) -> None:
    with simulated(tiny) as pipe:
        wanted = np.round(draw(pipe) * 255).astype(np.uint8)
        images = pipe(PROMPT, seed=3, num_inference_steps=STEPS, output_type="device").images
        told = images.__cuda_array_interface__
        assert (told["shape"], told["typestr"], told["version"]) == ((1, 128, 128, 3), "|u1", 3)
        memory = (ctypes.c_ubyte * wanted.size).from_address(told["data"][0])
        assert np.array_equal(np.ctypeslib.as_array(memory).reshape(told["shape"]), wanted)
        with pytest.raises(ArgumentError, match="at most 1 prompts with device"):
            pipe([PROMPT, OTHER], output_type="device")


def test_pictures_on_the_device_keep_their_pipeline(tiny: Path) -> None:
    """They can be returned from the function that drew them."""

    def drawn() -> Any:
        return simulated(tiny)(PROMPT, seed=3, num_inference_steps=STEPS, output_type="device").images

    images = drawn()
    gc.collect()
    assert images.owner.executor.device.live
    memory = (ctypes.c_ubyte * math.prod(images.shape)).from_address(images.address)
    with simulated(tiny) as pipe:
        wanted = np.round(draw(pipe) * 255).astype(np.uint8)
    assert np.array_equal(np.ctypeslib.as_array(memory).reshape(images.shape), wanted)


def test_a_callers_stream_is_waited_for(tiny: Path) -> None:
    class Stream:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 77

    with simulated(tiny) as pipe:
        draw(pipe)
        draw(pipe)
        for stream in (Stream(), 77):
            device(pipe).log.clear()
            draw(pipe, stream=stream)
            assert device(pipe).log == ["after stream 77", "launch", "wait"]
        with pytest.raises(ArgumentError, match="stream: expected a CUDA stream, found 'mine'"):
            draw(pipe, stream="mine")
    with Pipeline(tiny, "cpu") as cpu:
        with pytest.raises(ArgumentError, match="stream: expected None on target cpu"):
            draw(cpu, stream=77)
        with pytest.raises(ArgumentError, match="output_type: expected pil or np on this target"):
            draw(cpu, output_type="device")


@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_timings_tell_every_part(tiny: Path, target: str) -> None:
    with Pipeline(tiny, target) as pipe:
        told = pipe(PROMPT, seed=3, num_inference_steps=STEPS, output_type="np", timings=True)
        assert np.array_equal(told.images, draw(pipe))
        counts = {part: len(times) for part, times in told.timings.items()}
        parts = {COPY_IN: 1, "text_encoder": 1, "text_encoder_2": 1, "prologue": 1, "denoiser": STEPS, "vae_decoder": 1}
        assert counts == {**parts, COPY_OUT: 1}
        assert all(seconds >= 0 for times in told.timings.values() for seconds in times)
        assert pipe(PROMPT, seed=3, num_inference_steps=1).timings is None
        with pytest.raises(ArgumentError, match="timings: expected False with a callback"):
            draw(pipe, timings=True, callback_on_step_end=lambda *_: {})


@pytest.mark.parametrize("low_memory", [False, True])
def test_previews_show_the_steps(tiny: Path, low_memory: bool) -> None:
    """The last one is the picture; and a picture without them is one launch all the same."""
    seen: list[tuple[int, NDArray[np.uint8]]] = []

    def watch(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert tensors.keys() == {"images"}
        seen.append((step, tensors["images"]))
        return {}

    with simulated(tiny, low_memory=low_memory) as pipe:
        told: dict[str, Any] = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["images"]}
        watched = draw(pipe, callback_steps=2, **told)
        assert [step for step, _ in seen] == [1, 3]
        assert np.array_equal(seen[-1][1], np.round(watched * 255).astype(np.uint8))
        assert not np.array_equal(seen[0][1], seen[1][1])
        assert np.array_equal(draw(pipe), watched)
        with pytest.raises(ArgumentError, match="tensor_inputs: expected latents and images, found 'noise'"):
            draw(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["noise"])
        with pytest.raises(ArgumentError, match="callback_steps: expected 1 or more, found 0"):
            draw(pipe, callback_on_step_end=watch, callback_steps=0)


def test_cancelling_keeps_what_is_finished(tiny: Path) -> None:
    with simulated(tiny) as pipe:

        def stop(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe.cancel()
            return {}

        assert len(draw(pipe, [PROMPT, OTHER, PROMPT], callback_on_step_end=stop)) == 1
        assert len(draw(pipe, [PROMPT, OTHER, PROMPT])) == 3, "the next call draws everything"
