"""The executor on the simulated GPU: koala-tiny's pictures are those of the cpu target, in one launch.

What a GPU would do with a mistake (read what another component destroyed, replay what was captured with other
addresses) the simulated one does, too: ``koala_runtime.devices.simulated``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koala_runtime import Pipeline
from koala_runtime.pipeline import _KEPT_RUNS
from koala_runtime.program import make_program
from tests.support.simulated import OTHER, PROMPT, STEPS, assert_equal_to_cpu, device, draw, simulated


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


BUNDLES = [
    (True, 1),
    pytest.param(False, 2, marks=pytest.mark.full),
    pytest.param(True, 2, marks=pytest.mark.full),
    pytest.param(False, 1, marks=pytest.mark.full),
]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 10, 25])
@pytest.mark.parametrize(("cfg", "batch"), BUNDLES)
def test_pictures_are_those_of_the_processor(
    bundle: Callable[..., Path], cfg: bool, batch: int, steps: int, low_memory: bool
) -> None:
    options: dict[str, Any] = {} if cfg else {"cfg": False, "guidance_scale": 1.0}
    assert_equal_to_cpu(bundle("koala-tiny", batch=batch, **options), steps, low_memory=low_memory)


def test_a_picture_is_one_launch_and_one_wait(tiny: Path) -> None:
    with simulated(tiny) as pipe:
        draw(pipe)
        draw(pipe)
        log = device(pipe).log
        for change in ({"seed": 4}, {"prompt": OTHER}, {"guidance_scale": 1.5}, {"negative_prompt": "red"}):
            log.clear()
            draw(pipe, **change)
            assert log == ["launch", "wait"]


def test_only_another_number_of_steps_captures_again(tiny: Path) -> None:
    with simulated(tiny) as pipe:
        for count in (4, 2, 4, 2, 4, 2):
            draw(pipe, num_inference_steps=count)
        assert device(pipe).log.count("capture") == device(pipe).graphs == 2
        for count in range(1, 1 + _KEPT_RUNS + 2):
            draw(pipe, num_inference_steps=count)
            draw(pipe, num_inference_steps=count)
        assert device(pipe).graphs == _KEPT_RUNS


def test_all_numbers_of_steps_share_one_memory(tiny: Path) -> None:
    """That of the largest so far: then what was captured on the smaller one goes."""
    with simulated(tiny) as pipe, Pipeline(tiny, "cpu") as cpu:
        for count, graphs in ((4, 0), (4, 1), (2, 1), (2, 2), (4, 2), (40, 0), (4, 0), (4, 1)):
            wanted = draw(cpu, num_inference_steps=count, seed=graphs)
            assert np.array_equal(draw(pipe, num_inference_steps=count, seed=graphs), wanted)
            assert device(pipe).graphs == graphs
            program = make_program(pipe.manifest.components, max(count, 4), half="float32").nbytes
            assert max(device(pipe).live.values()) >= program
            assert len(device(pipe).live) == len(pipe.manifest.components) + 2, "weights, scratch and tensors"
            assert len(device(pipe).pinned) == 3, "inputs, images and the latents that they come from"


STAGES = ["text_encoder", "text_encoder_2", "prologue", *["denoiser"] * 4, "vae_decoder"]


def test_everything_is_computed_once_and_in_order(tiny: Path) -> None:
    """An engine's first run cannot be captured: it is the first picture itself. The second one is captured."""
    with simulated(tiny) as pipe:
        log = device(pipe).log
        log.clear()
        draw(pipe)
        assert log == ["allocate", *["pin"] * 3, "copy in", *STAGES, "copy out", "copy out", "wait", "wait"]
        log.clear()
        draw(pipe)
        assert log == ["capture", "launch", "wait"]


def test_another_number_of_steps_computes_one_picture(tiny: Path) -> None:
    with simulated(tiny) as pipe, Pipeline(tiny, "cpu") as cpu:
        draw(pipe)
        device(pipe).log.clear()
        assert np.array_equal(draw(pipe, num_inference_steps=3), draw(cpu, num_inference_steps=3))
        assert Counter(device(pipe).log)["denoiser"] == 3
        assert "capture" not in device(pipe).log


def test_a_plan_that_cannot_be_captured_runs_without_a_graph(tiny: Path) -> None:
    with simulated(tiny) as pipe, Pipeline(tiny, "cpu") as cpu:
        device(pipe).uncapturable.add("vae_decoder")
        for seed in (1, 2):
            assert np.array_equal(draw(pipe, seed=seed), draw(cpu, seed=seed))
        assert Counter(device(pipe).log)["denoiser"] == 8
        assert "capture" not in device(pipe).log
        told = pipe(PROMPT, seed=3, num_inference_steps=STEPS, output_type="np", timings=True)
        assert np.array_equal(told.images, draw(cpu))
        assert device(pipe).graphs == 2 + 3 + STEPS, "copies, text encoders, prologue and steps"


def test_where_time_is_limited_each_step_is_a_graph(tiny: Path) -> None:
    """As under Windows, where what takes seconds is stopped: no graph lasts longer than a step."""
    with simulated(tiny) as pipe, Pipeline(tiny, "cpu") as cpu:
        device(pipe).has_time_limit = True
        for seed in (1, 2, 3):
            device(pipe).log.clear()
            assert np.array_equal(draw(pipe, seed=seed), draw(cpu, seed=seed))
        assert device(pipe).log == [*["launch"] * (1 + STEPS + 1), "wait"]


def test_low_memory_keeps_one_phase(tiny: Path) -> None:
    with simulated(tiny, low_memory=True) as pipe:
        assert device(pipe).live == {}
        most = 0

        class Watched(dict[int, int]):
            def __setitem__(self, key: int, value: int) -> None:
                nonlocal most
                super().__setitem__(key, value)
                most = max(most, sum(self.values()))

        device(pipe).live = Watched()
        draw(pipe)
        loads = [entry for entry in device(pipe).log if entry.startswith("load")]
        assert loads == [
            f"load {name}" for name in ("text_encoder", "text_encoder_2", "prologue", "denoiser", "vae_decoder")
        ]
        assert most < 0.8 * pipe.budget.total()
        assert len(device(pipe).live) == 1, "what the components share stays"
        assert device(pipe).log.count("launch") == 0


def test_closing_frees_everything(tiny: Path) -> None:
    pipe = simulated(tiny)
    draw(pipe)
    pipe.close()
    assert (device(pipe).live, device(pipe).pinned, device(pipe).graphs) == ({}, {}, 0)


def memory_mb() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


@pytest.mark.parametrize(("pictures", "cycles"), [(20, 5), pytest.param(1000, 100, marks=pytest.mark.full)])
def test_memory_stays_flat(tiny: Path, pictures: int, cycles: int) -> None:
    with simulated(tiny) as pipe:
        draw(pipe, num_inference_steps=1)
        draw(pipe, num_inference_steps=1)
        before = len(device(pipe).live), len(device(pipe).pinned), device(pipe).graphs
        device(pipe).log.clear()
        for index in range(pictures):
            draw(pipe, num_inference_steps=1, seed=index)
            if index == pictures // 4:
                early = memory_mb() if sys.platform == "linux" else 0.0
        assert (len(device(pipe).live), len(device(pipe).pinned), device(pipe).graphs) == before
        assert Counter(device(pipe).log) == {"launch": pictures, "wait": pictures}
        if sys.platform == "linux":
            assert memory_mb() < early + 20
    for index in range(cycles):
        if index == cycles // 4:
            early = memory_mb() if sys.platform == "linux" else 0.0
        with simulated(tiny) as pipe:
            pass
        assert device(pipe).live == {}
    if sys.platform == "linux":
        assert memory_mb() < early + 40


def test_pipelines_and_threads(tiny: Path) -> None:
    """Two pipelines, each called from two threads, draw what one draws alone."""
    with Pipeline(tiny, "cpu") as cpu:
        wanted = {seed: draw(cpu, seed=seed, num_inference_steps=2) for seed in range(4)}
    with simulated(tiny) as one, simulated(tiny) as other, ThreadPoolExecutor(4) as pool:
        jobs = [
            (seed, pool.submit(draw, pipe, seed=seed, num_inference_steps=2))
            for seed in wanted
            for pipe in (one, other)
        ]
        for seed, job in jobs:
            assert np.array_equal(job.result(), wanted[seed])
