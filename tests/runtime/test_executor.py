"""The captured path on a simulated GPU: koala-tiny's pictures are those of the cpu target, and mistakes show.

What a GPU would do with a mistake (read what another stage destroyed, replay what was captured with other addresses)
the simulated one does, too: ``koala_runtime/simulated.py``.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import koala_runtime.pipeline
import koala_runtime.selection
from koala_bundle.engine_record import read_engine_record
from koala_bundle.errors import ArgumentError, BundleError, DeviceError, TargetError
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU
from koala_engines.build import build_engines
from koala_export.exporter import ExportOptions, export_bundle
from koala_runtime import Pipeline
from koala_runtime import program as programs
from koala_runtime.budget import budget
from koala_runtime.devices.simulated import SimulatedDevice
from koala_runtime.executor import COPY_IN, COPY_OUT, Executor
from koala_runtime.pipeline import _KEPT_RUNS
from tests.support.koala_tiny import CHECKPOINT

PROMPT = "a large red circle on a white background"
OTHER = "a small blue star left of a green ring on a black background"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from guidance and batch to a bundle of koala-tiny."""
    root = tmp_path_factory.mktemp("koala-tiny")

    def get(cfg: bool = True, batch: int = 1) -> Path:
        path = root / f"{cfg}-{batch}"
        if not path.exists():
            guidance = 2.0 if cfg else 1.0
            options = ExportOptions(cfg=cfg, batch=batch, num_inference_steps=4, guidance_scale=guidance, gate=False)
            export_bundle(str(CHECKPOINT), path, options)
            build_engines(path, CPU)
        return path

    return get


@pytest.fixture
def bundle(tiny: Callable[..., Path]) -> Path:
    return tiny()


def simulated(bundle: Path, **options: Any) -> Pipeline:
    return Pipeline(bundle, "simulated", **options)


def device(pipe: Pipeline) -> Any:
    return pipe.executor.device


def draw(pipe: Pipeline, prompt: Any = PROMPT, **arguments: Any) -> NDArray[np.float32]:
    images: NDArray[np.float32] = pipe(prompt, **{"seed": 3, "output_type": "np"} | arguments).images
    return images


def assert_equal_to_cpu(bundle: Path, steps: int = 4, **options: Any) -> None:
    """Also on the second picture: the first one's run before the capture leaves everything in place."""
    with Pipeline(bundle, "cpu") as cpu, simulated(bundle, **options) as gpu:
        for prompt in (OTHER, [PROMPT, OTHER]):
            wanted, got = (draw(pipe, prompt, num_inference_steps=steps) for pipe in (cpu, gpu))
            assert np.array_equal(wanted, got)


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
    tiny: Callable[..., Path], cfg: bool, batch: int, steps: int, low_memory: bool
) -> None:
    assert_equal_to_cpu(tiny(cfg, batch), steps, low_memory=low_memory)


def test_a_picture_is_one_launch_and_one_wait(bundle: Path) -> None:
    with simulated(bundle) as pipe:
        draw(pipe)
        log = device(pipe).log
        for change in ({"seed": 4}, {"prompt": OTHER}, {"guidance_scale": 1.5}, {"negative_prompt": "red"}):
            log.clear()
            draw(pipe, **change)
            assert log == ["launch", "wait"]


def test_only_another_number_of_steps_captures_again(bundle: Path) -> None:
    with simulated(bundle) as pipe:
        for count in (4, 2, 4, 2):
            draw(pipe, num_inference_steps=count)
        assert device(pipe).log.count("capture") == device(pipe).graphs == 2
        taken = len(device(pipe).live)
        for count in range(3, 3 + _KEPT_RUNS + 2):
            draw(pipe, num_inference_steps=count)
        assert device(pipe).graphs == _KEPT_RUNS
        assert len(device(pipe).live) == taken + _KEPT_RUNS - 2
        assert len(device(pipe).pinned) == 2 * _KEPT_RUNS


def test_everything_is_computed_once_and_in_order(bundle: Path) -> None:
    """The run before the capture shows what the graph holds."""
    with simulated(bundle) as pipe:
        draw(pipe)
        log = device(pipe).log
        picture = log[log.index("copy in") : log.index("capture")]
    stages = ["text_encoder", "text_encoder_2", "prologue", *["denoiser"] * 4, "vae_decoder"]
    assert picture == ["copy in", *stages, "copy out", "wait"]


def test_low_memory_keeps_one_phase(bundle: Path) -> None:
    with simulated(bundle, low_memory=True) as pipe:
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


def test_the_budget_is_what_is_taken(bundle: Path) -> None:
    with simulated(bundle) as pipe:
        draw(pipe)
        record = read_engine_record(bundle, CPU)
        scratch = {e.name: sum(t.nbytes for t in e.outputs) for e in pipe.manifest.components}
        plans = {name: replace(plan, activation_bytes=scratch[name]) for name, plan in record.plans.items()}
        # The processor's tensors are float32 where the GPU's are float16.
        shared = programs.make_program(pipe.manifest.components, 4, half="float32").nbytes
        expected = replace(budget(pipe.manifest, replace(record, plans=plans)), tensors=shared)
        assert sum(device(pipe).live.values()) == expected.total()


def test_closing_frees_everything(bundle: Path) -> None:
    pipe = simulated(bundle)
    draw(pipe)
    pipe.close()
    assert (device(pipe).live, device(pipe).pinned, device(pipe).graphs) == ({}, {}, 0)


def memory_mb() -> float:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096 / 1e6


@pytest.mark.parametrize(("pictures", "cycles"), [(20, 5), pytest.param(1000, 100, marks=pytest.mark.full)])
def test_memory_stays_flat(bundle: Path, pictures: int, cycles: int) -> None:
    with simulated(bundle) as pipe:
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
        with simulated(bundle) as pipe:
            pass
        assert device(pipe).live == {}
    if sys.platform == "linux":
        assert memory_mb() < early + 40


def test_pipelines_and_threads(bundle: Path) -> None:
    """Two pipelines, each called from two threads, draw what one draws alone."""
    with Pipeline(bundle, "cpu") as cpu:
        wanted = {seed: draw(cpu, seed=seed, num_inference_steps=2) for seed in range(4)}
    with simulated(bundle) as one, simulated(bundle) as other, ThreadPoolExecutor(4) as pool:
        jobs = [
            (seed, pool.submit(draw, pipe, seed=seed, num_inference_steps=2))
            for seed in wanted
            for pipe in (one, other)
        ]
        for seed, job in jobs:
            assert np.array_equal(job.result(), wanted[seed])


# --- what products ask for


def test_pictures_can_stay_on_the_device(bundle: Path) -> None:
    with simulated(bundle) as pipe:
        wanted = np.round(draw(pipe) * 255).astype(np.uint8)
        images = pipe(PROMPT, seed=3, output_type="device").images
        told = images.__cuda_array_interface__
        assert (told["shape"], told["typestr"], told["version"]) == ((1, 128, 128, 3), "|u1", 3)
        memory = (ctypes.c_ubyte * wanted.size).from_address(told["data"][0])
        assert np.array_equal(np.ctypeslib.as_array(memory).reshape(told["shape"]), wanted)
        with pytest.raises(ArgumentError, match="at most 1 prompts with device"):
            pipe([PROMPT, OTHER], output_type="device")


def test_a_callers_stream_is_waited_for(bundle: Path) -> None:
    class Stream:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 77

    with simulated(bundle) as pipe:
        draw(pipe)
        for stream in (Stream(), 77):
            device(pipe).log.clear()
            draw(pipe, stream=stream)
            assert device(pipe).log == ["after stream 77", "launch", "wait"]
        with pytest.raises(ArgumentError, match="stream: expected a CUDA stream, found 'mine'"):
            draw(pipe, stream="mine")
    with Pipeline(bundle, "cpu") as cpu:
        with pytest.raises(ArgumentError, match="stream: expected None on target cpu"):
            draw(cpu, stream=77)
        with pytest.raises(ArgumentError, match="output_type: expected pil or np on this target"):
            draw(cpu, output_type="device")


@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_timings_tell_every_part(bundle: Path, target: str) -> None:
    with Pipeline(bundle, target) as pipe:
        told = pipe(PROMPT, seed=3, output_type="np", timings=True)
        assert np.array_equal(told.images, draw(pipe))
        counts = {part: len(times) for part, times in told.timings.items()}
        parts = {COPY_IN: 1, "text_encoder": 1, "text_encoder_2": 1, "prologue": 1, "denoiser": 4, "vae_decoder": 1}
        assert counts == {**parts, COPY_OUT: 1}
        assert all(seconds >= 0 for times in told.timings.values() for seconds in times)
        assert pipe(PROMPT, seed=3).timings is None
        with pytest.raises(ArgumentError, match="timings: expected False with a callback"):
            draw(pipe, timings=True, callback_on_step_end=lambda *_: {})


@pytest.mark.parametrize("low_memory", [False, True])
def test_previews_show_the_steps(bundle: Path, low_memory: bool) -> None:
    """The last one is the picture; and a picture without them is one launch all the same."""
    seen: list[tuple[int, NDArray[np.uint8]]] = []

    def watch(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        assert tensors.keys() == {"images"}
        seen.append((step, tensors["images"]))
        return {}

    with simulated(bundle, low_memory=low_memory) as pipe:
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


def test_cancelling_keeps_what_is_finished(bundle: Path) -> None:
    with simulated(bundle) as pipe:

        def stop(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe.cancel()
            return {}

        assert len(draw(pipe, [PROMPT, OTHER, PROMPT], callback_on_step_end=stop)) == 1
        assert len(draw(pipe, [PROMPT, OTHER, PROMPT])) == 3, "the next call draws everything"


# --- mistakes that must show


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
    capture = SimulatedDevice.capture

    def straight(self: SimulatedDevice, stages: Any) -> Any:
        return capture(self, [lambda stage=stage: stage() if self.capturing else None for stage in stages])

    monkeypatch.setattr(SimulatedDevice, "capture", straight)


def small_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    have = Executor.load_only

    def shrunk(self: Executor, names: Any) -> None:
        have(self, names)
        most = self.device.live[self._activations]
        self.device.release(self._activations)
        self._activations = self.device.allocate(most - 4096)

    monkeypatch.setattr(Executor, "load_only", shrunk)


MISTAKES = [overlapping, swapped_steps, late_text_encoder, stale_table, latents_in_place, no_warm_up, small_arena]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(bundle: Path, mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_to_cpu(bundle)
    with Pipeline(bundle, "cpu") as cpu:
        wanted = draw(cpu)
    mistake(monkeypatch)
    with pytest.raises((AssertionError, DeviceError)), simulated(bundle) as gpu:
        draw(gpu, OTHER)
        assert np.array_equal(draw(gpu), wanted)


# --- failures: one clear sentence, memory released, the process alive


def test_too_little_memory_is_told_before_loading(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = budget(read_manifest(bundle), read_engine_record(bundle, CPU)).total()
    made: list[SimulatedDevice] = []

    def small(megabytes: int) -> None:
        def make() -> SimulatedDevice:
            made.append(SimulatedDevice(megabytes << 20))
            return made[-1]

        monkeypatch.setattr("koala_runtime.devices.simulated.SimulatedDevice", make)

    small(24)
    with pytest.raises(
        DeviceError, match=r"GPU memory: expected \d+ MB free, found 25 MB; pass low_memory=True, which"
    ):
        simulated(bundle)
    assert made[-1].log == [], "nothing was loaded"
    small(8)
    with pytest.raises(DeviceError, match=r"expected \d+ MB free, found 8 MB; close what else runs on this GPU\."):
        simulated(bundle, low_memory=True)
    small(24)
    with simulated(bundle, low_memory=True) as pipe:
        draw(pipe)
    assert total > 25e6


@pytest.mark.parametrize("entry", ["load denoiser", "allocate", "pin", "capture", "launch", "wait", "copy in"])
def test_a_failure_is_one_sentence_and_frees_everything(
    bundle: Path, entry: str, monkeypatch: pytest.MonkeyPatch
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
            simulated(bundle)
    else:
        with simulated(bundle) as pipe:
            taken = dict(made[-1].live)
            made[-1].failures[entry] = "a fault"
            with pytest.raises(DeviceError, match=f"{entry}: expected success, found a fault; open"):
                draw(pipe)
            assert (made[-1].live, made[-1].pinned, made[-1].graphs) == (taken, {}, 0)
            with Pipeline(bundle, "cpu") as cpu:
                assert np.array_equal(draw(pipe), draw(cpu)), "a fault that passes leaves the pipeline usable"
    assert (made[-1].live, made[-1].pinned) == ({}, {})


@pytest.mark.parametrize("when", ["before", "capturing"])
def test_a_refused_run_is_an_error(bundle: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored, it would leave a stage out of the graph, and every picture would show what was in memory before."""
    with simulated(bundle) as pipe:
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


def test_a_sticky_fault_leaves_the_process_alive(bundle: Path) -> None:
    pipe = simulated(bundle)
    draw(pipe)
    device(pipe).failures["sticky"] = "an illegal memory access"
    for _ in range(2):
        with pytest.raises(DeviceError, match="found an illegal memory access; open the pipeline again"):
            draw(pipe)
    pipe.close()
    with simulated(bundle) as again:
        draw(again)


def test_a_damaged_plan_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its digest; and by whoever loads it, if it was damaged before that was taken."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    plan = copy / "engines" / "cpu" / "vae_decoder.onnx"
    plan.write_bytes(plan.read_bytes()[:-40])
    with pytest.raises(BundleError, match=r"vae_decoder\.onnx"):
        simulated(copy)
    monkeypatch.setattr(koala_runtime.selection, "check_files", lambda *_: None)
    with pytest.raises(BundleError, match="expected a plan that ONNX Runtime"):
        simulated(copy)


def test_plans_of_another_version_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("koala_runtime.devices.cpu.VERSION", "0.1")
    with pytest.raises(TargetError, match=r"expected plans of onnxruntime 0\.1, which is installed, found plans of"):
        simulated(bundle)
