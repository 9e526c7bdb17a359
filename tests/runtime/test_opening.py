"""``Pipeline(executor=...)``: an executor of one's own runs the components, and all else stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from koala_bundle.errors import DeviceError, TargetError
from koala_bundle.targets import CPU, SIMULATED
from koala_runtime import Pipeline
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.cpu import CpuDevice, OrtEngine
from koala_runtime.executor import Executor
from koala_runtime.opening import open_executor
from koala_runtime.preflight import obstacle
from koala_runtime.selection import EngineSet

SHAPE = "koala-700m-like"
CAT = "a photo of a cat"


@pytest.fixture(scope="module")
def small(bundle: Callable[..., Path]) -> Path:
    return bundle(SHAPE)


def draw(pipe: Pipeline) -> NDArray[np.float32]:
    images: NDArray[np.float32] = pipe(CAT, seed=3, num_inference_steps=4, output_type="np").images
    return images


class Observed(OrtEngine):
    """An engine that counts its runs."""

    def __init__(self, path: Path, runs: Counter[str]) -> None:
        super().__init__(path)
        self._name, self._runs = path.stem, runs

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        run = super().bind(tensors, activations)

        def observed() -> bool:
            self._runs[self._name] += 1
            return run()

        return observed


def test_its_engines_run_the_picture(small: Path) -> None:
    runs, asked = Counter[str](), list[tuple[EngineSet, bool]]()

    def open_observed(engines: EngineSet, low_memory: bool) -> Executor:
        asked.append((engines, low_memory))
        half = engines.target.half
        return Executor(
            CpuDevice(), lambda name: Observed(engines.plan(name), runs), engines.components, half, low_memory
        )

    with Pipeline(small, "cpu") as usual:
        wanted = draw(usual)
    for low_memory in (False, True):
        runs.clear()
        with Pipeline(small, "cpu", low_memory=low_memory, executor=open_observed) as pipe:
            assert runs == {}, "nothing runs before the first picture"
            assert np.array_equal(draw(pipe), wanted)
            assert runs == {"text_encoder": 1, "text_encoder_2": 1, "prologue": 1, "denoiser": 4, "vae_decoder": 1}
    assert [low for _, low in asked] == [False, True]
    engines = asked[0][0]
    assert (engines.path, engines.target, engines.folder) == (small, CPU, small / "engines" / "cpu")
    assert set(engines.components) == set(runs)


def test_it_may_be_on_another_device(small: Path) -> None:
    """The plans of the cpu target on the simulated GPU: memory is taken there, and none is left afterwards."""
    made: list[Executor] = []

    def on_a_device(engines: EngineSet, low_memory: bool) -> Executor:
        made.append(open_executor(replace(engines, target=SIMULATED), low_memory))
        return made[-1]

    with Pipeline(small, "cpu", executor=on_a_device) as pipe, Pipeline(small, "cpu") as usual:
        assert pipe.executor is made[0]
        assert pipe.target is CPU
        device: Any = pipe.executor.device
        assert np.array_equal(draw(pipe), draw(usual))
        assert device.live
        assert "capture" not in device.log, "the first picture is an engine's first run, without a graph"
        draw(pipe)
        assert device.log[-3:] == ["capture", "launch", "wait"]
    assert (device.live, device.pinned, device.graphs) == ({}, {}, 0)


def test_what_it_raises_reaches_the_caller(small: Path) -> None:
    def refuse(engines: EngineSet, low_memory: bool) -> Executor:
        raise DeviceError("my device", expected="one", found="none", fix="plug it in")

    with pytest.raises(DeviceError, match=r"^my device: expected one, found none; plug it in"):
        Pipeline(small, "cpu", executor=refuse)


def test_the_usual_one_can_be_wrapped(small: Path) -> None:
    """The opened executor, with one component changed."""

    def negative(engines: EngineSet, low_memory: bool) -> Executor:
        executor = open_executor(engines, low_memory)
        bind = executor.bind

        def changed(call: Any) -> Callable[[], None]:
            enqueue = bind(call)
            if call.component != "vae_decoder":
                return enqueue
            place = call.tensors["images"]

            def run() -> None:
                enqueue()
                pinned = executor.device.pin(place.nbytes)
                executor.device.copy_out(pinned, executor.block + place.offset)
                np.subtract(255, pinned, out=pinned)
                executor.device.copy_in(executor.block + place.offset, pinned)

            return run

        executor.bind = changed  # type: ignore[method-assign]
        return executor

    with Pipeline(small, "cpu") as usual, Pipeline(small, "cpu", executor=negative) as pipe:
        wanted, got = (np.round(draw(each) * 255).astype(int) for each in (usual, pipe))
        assert np.array_equal(got, 255 - wanted)


def test_what_this_machine_can_run() -> None:
    assert obstacle(CPU) is None
    assert obstacle(SIMULATED) is None


def test_plans_of_another_version_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("koala_runtime.devices.cpu.VERSION", "0.1")
    for target in ("cpu", "simulated"):
        with pytest.raises(TargetError, match=r"expected plans of onnxruntime 0\.1, which is installed, found plans"):
            Pipeline(small, target)


SWITCH = "ORT_DISABLE_TELEMETRY"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into the folder where ONNX Runtime keeps its reports there")
@pytest.mark.parametrize("told", [None, "0"])
def test_onnx_runtime_reports_to_nobody(told: str | None, small: Path, tmp_path: Path) -> None:
    """Unless the user says so, which shows that the test can fail; a CI's variables would switch them off, too."""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)} | ({} if told is None else {SWITCH: told})
    script = f"from koala_runtime import Pipeline\nPipeline({str(small)!r}, 'cpu').close()"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    reports = [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
    assert bool(reports) == (told is not None)
