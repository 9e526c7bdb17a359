"""What fails on a device is one clear sentence; memory is released, and the process stays alive."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import koala_runtime.selection
from koala_bundle.errors import BundleError, DeviceError
from koala_runtime import Pipeline
from koala_runtime.devices.simulated import SimulatedDevice
from tests.support.simulated import STEPS, device, draw, simulated


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


@pytest.mark.parametrize("entry", ["load denoiser", "allocate", "pin", "capture", "launch", "wait", "copy in"])
def test_a_failure_is_one_sentence_and_frees_everything(
    tiny: Path, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[SimulatedDevice] = []

    def make() -> SimulatedDevice:
        made.append(SimulatedDevice())
        if entry in ("load denoiser", "allocate"):
            made[-1].failures[entry] = "a fault"
        return made[-1]

    monkeypatch.setattr("koala_runtime.devices.simulated.SimulatedDevice", make)
    if entry in ("load denoiser", "allocate"):
        with pytest.raises(DeviceError, match=f"{entry}: expected success, found a fault; open"):
            simulated(tiny)
    else:
        with simulated(tiny) as pipe:
            if entry != "pin":
                draw(pipe)  # takes the memory that every picture uses; the second is captured
            held = {**made[-1].live}, {**made[-1].pinned}
            made[-1].failures[entry] = "a fault"
            steps = 1 if entry == "copy in" else STEPS  # a graph copies in without a word: enqueue it anew
            with pytest.raises(DeviceError, match=f"{entry}: expected success, found a fault; open"):
                draw(pipe, num_inference_steps=steps)
            assert (made[-1].live, made[-1].pinned, made[-1].graphs) == (*held, 0)
            with Pipeline(tiny, "cpu") as cpu:
                assert np.array_equal(draw(pipe), draw(cpu)), "a fault that passes leaves the pipeline usable"
    assert (made[-1].live, made[-1].pinned) == ({}, {})


@pytest.mark.parametrize("when", ["before", "capturing"])
def test_a_refused_run_is_an_error(tiny: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored, it would leave a stage out of the graph, and every picture would show what was in memory before."""
    with simulated(tiny) as pipe:
        draw(pipe)  # without a graph
        if when == "before":
            device(pipe).failures["refuse denoiser"] = "yes"
        else:
            note = device(pipe).note

            def refuse(name: str) -> None:
                note(name)
                if name == "capture":
                    device(pipe).failures["refuse denoiser"] = "yes"

            monkeypatch.setattr(device(pipe), "note", refuse)
        with pytest.raises(DeviceError, match="component denoiser: expected an engine that runs, found a refusal"):
            draw(pipe)
        assert device(pipe).graphs == 0


def test_a_sticky_fault_leaves_the_process_alive(tiny: Path) -> None:
    pipe = simulated(tiny)
    draw(pipe)
    device(pipe).failures["sticky"] = "an illegal memory access"
    for _ in range(2):
        with pytest.raises(DeviceError, match="found an illegal memory access; open the pipeline again"):
            draw(pipe)
    pipe.close()
    with simulated(tiny) as again:
        draw(again)


def test_a_damaged_plan_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its digest; and by whoever loads it, if it was damaged before that was taken."""
    copy = shutil.copytree(tiny, tmp_path / "bundle", ignore=shutil.ignore_patterns("rtx", ".*"))  # cpu only
    plan = copy / "engines" / "cpu" / "vae_decoder.onnx"
    plan.write_bytes(plan.read_bytes()[:-40])
    with pytest.raises(BundleError, match=r"vae_decoder\.onnx"):
        simulated(copy)
    monkeypatch.setattr(koala_runtime.selection, "check_files_once", lambda *_, **__: None)
    with pytest.raises(BundleError, match="expected a plan that ONNX Runtime"):
        simulated(copy)
