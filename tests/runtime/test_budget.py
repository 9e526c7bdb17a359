"""The memory that a picture takes on a device: what the budget says is what is taken, and too little is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from koala_bundle.engine_record import read_engine_record
from koala_bundle.errors import DeviceError
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU
from koala_runtime import program as programs
from koala_runtime.budget import budget
from koala_runtime.devices.simulated import SimulatedDevice
from tests.support.simulated import STEPS, device, draw, simulated


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


def test_the_budget_is_what_is_taken(tiny: Path) -> None:
    with simulated(tiny) as pipe:
        draw(pipe)
        record = read_engine_record(tiny, CPU)
        scratch = {e.name: sum(t.nbytes for t in e.outputs) for e in pipe.manifest.components}
        plans = {name: replace(plan, activation_bytes=scratch[name]) for name, plan in record.plans.items()}
        # The processor's tensors are float32 where the GPU's are float16.
        shared = programs.make_program(pipe.manifest.components, STEPS, half="float32").nbytes
        expected = replace(budget(pipe.manifest, replace(record, plans=plans), STEPS), tensors=shared)
        assert sum(device(pipe).live.values()) == expected.total()


def test_too_little_memory_is_told_before_loading(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = budget(read_manifest(tiny), read_engine_record(tiny, CPU)).total()
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
        simulated(tiny)
    assert made[-1].log == [], "nothing was loaded"
    small(8)
    with pytest.raises(DeviceError, match=r"expected \d+ MB free, found 8 MB; close what else runs on this GPU\."):
        simulated(tiny, low_memory=True)
    small(24)
    with simulated(tiny, low_memory=True) as pipe:
        draw(pipe)
    assert total > 25e6
