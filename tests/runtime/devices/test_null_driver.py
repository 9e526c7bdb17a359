"""The runtime's own code for GPUs, over cuda-bindings, on a driver without a GPU (``tests.support.nulldriver``).

A real GPU shows what this cannot: TensorRT itself, and speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from koala_bundle.engine_record import read_engine_record
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import RTX
from koala_runtime import Pipeline
from koala_runtime.budget import budget
from tests.support.nulldriver import LAUNCH_FAILED, OUT_OF_MEMORY, changes, null_process, scenarios
from tests.support.nulldriver.scenarios import PAINTED, SAMPLED, SEEDS, WAYS, Images, Outcome, Seen

OnNullDriver = Callable[..., Any]
FREES = (
    *("cuMemFree", "cuMemFreeAsync", "cuMemFreeHost", "cuGraphDestroy", "cuGraphExecDestroy", "cuEventDestroy"),
    "cuStreamDestroy",
)


def on_cpu(bundle: Path) -> list[Images]:
    with Pipeline(bundle, "cpu") as pipe:
        return [scenarios.plain(pipe, seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def wanted(null_bundle: Path) -> list[Images]:
    return on_cpu(null_bundle)


@pytest.fixture(scope="module")
def unchanged(on_null_driver: OnNullDriver, null_bundle: Path) -> Callable[[str], Seen]:
    """Return a function from a way to draw to what is seen of it."""
    return cache(partial(on_null_driver, scenarios.draw, null_bundle))


def test_koala_tiny_is_drawn_as_on_the_processor(
    on_null_driver: OnNullDriver, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    copy = scenarios.add_rtx_engines(bundle("koala-tiny", precision="fp32"), tmp_path / "copy")
    seen = on_null_driver(scenarios.draw, copy, "plain")
    assert np.array_equal(seen.pictures, on_cpu(copy))
    assert seen.wrong == []


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_draw(way: str, unchanged: Callable[[str], Seen], wanted: list[Images]) -> None:
    seen = unchanged(way)
    assert np.array_equal(seen.pictures, wanted)
    assert seen.wrong == []
    assert "graphs" not in seen.held, "freed when they are no longer needed"
    assert seen.held["events"] == 1, "the one that is waited for"


@pytest.mark.parametrize("way", SAMPLED)
def test_every_kind_of_sampler(way: str, unchanged: Callable[[str], Seen], null_bundle: Path) -> None:
    with Pipeline(null_bundle, "cpu") as pipe:
        on_processor = [SAMPLED[way][0](pipe, seed) for seed in SEEDS]
    seen = unchanged(way)
    assert np.array_equal(seen.pictures, on_processor)
    assert seen.wrong == []


@pytest.fixture(scope="module")
def painted_bundle(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "bundle"
    return scenarios.add_rtx_engines(bundle("koala-700m-like", encoder=True), folder)


@pytest.mark.parametrize("way", PAINTED)
def test_pictures_from_pictures(way: str, on_null_driver: OnNullDriver, painted_bundle: Path) -> None:
    with Pipeline(painted_bundle, "cpu") as pipe:
        on_processor = [PAINTED[way][0](pipe, seed) for seed in SEEDS]
    seen = on_null_driver(scenarios.draw, painted_bundle, way)
    assert np.array_equal(seen.pictures, on_processor)
    assert seen.wrong == []


def test_a_later_picture_is_one_launch_and_one_wait(unchanged: Callable[[str], Seen]) -> None:
    picture = ["cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"]
    assert unchanged("plain").calls == ["cuCtxPushCurrent", *picture, "cuCtxPopCurrent"]


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_budget_is_what_is_used_to_the_byte(
    low_memory: bool, unchanged: Callable[[str], Seen], null_bundle: Path
) -> None:
    record = read_engine_record(null_bundle, RTX)
    needed = budget(read_manifest(null_bundle), record, steps=1).total(low_memory=low_memory)
    assert unchanged("low memory" if low_memory else "plain").peak == needed


# --- calls that fail


def check(outcome: Outcome, status: int, sticky: bool) -> None:
    """The right error, nothing left behind, and the next picture is right."""
    reported = outcome.error.startswith(("DeviceError: ", "TargetError: "))
    if outcome.during == "closing" or outcome.function in (*FREES, "cuStreamSynchronize"):
        # What is freed, or waited for only to free something, may fail without a word if the picture is there.
        assert reported or not outcome.error
    else:
        assert reported
    if reported and not (status == OUT_OF_MEMORY and "GPU memory" in outcome.error):
        assert f"CUresult {status}" in outcome.error or "Cuda Runtime" in outcome.error
    assert outcome.again in ("the same", "")
    assert outcome.again or outcome.during != "drawing" or not reported
    assert outcome.violations == []
    # What the driver refuses to free is freed by close; what it refuses then is freed with the context.
    if outcome.function not in FREES and not sticky:
        assert "graphs" not in outcome.held
        assert outcome.held.get("events", 1) == 1
    if outcome.during == "closing":
        assert outcome.live.keys() <= {"retained contexts"}
    else:
        assert outcome.live == {}
    assert outcome.live == {} or outcome.function == "cuDevicePrimaryCtxRelease"
    if not sticky and outcome.function not in (*FREES, "cuCtxPushCurrent", "cuCtxPopCurrent"):
        assert outcome.left == {}


FUNCTIONS = (
    *("cuDriverGetVersion", "cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"),
    *("cuDeviceTotalMem", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuStreamCreate"),
    *("cuMemGetInfo", "cuMemAlloc", "cuMemAllocAsync", "cuMemFreeAsync", "cuMemHostAlloc", "cuEventCreate"),
    *("cuEventRecord", "cuEventSynchronize", "cuEventDestroy", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"),
    "cuLaunchHostFunc",
    *("cuStreamSynchronize", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphUpload"),
    *("cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy", "cuMemFreeHost", "cuMemFree", "cuStreamDestroy"),
    "cuDevicePrimaryCtxRelease",
)
EVENTS = ("cuStreamWaitEvent", "cuEventElapsedTime")


def test_a_call_of_each_function_fails(on_null_driver: OnNullDriver, null_bundle: Path, wanted: list[Images]) -> None:
    outcomes = on_null_driver(scenarios.fail_each, null_bundle, "plain", wanted, LAUNCH_FAILED, FUNCTIONS)
    assert {outcome.function for outcome in outcomes} == {*FUNCTIONS}
    for outcome in outcomes:
        check(outcome, LAUNCH_FAILED, sticky=False)
    errors = {outcome.function: outcome.error for outcome in outcomes}
    assert "the NVIDIA driver does not describe GPU 0 (cuDeviceGetName: CUresult 719)" in errors["cuDeviceGetName"]
    assert "the GPU, in cuGraphLaunch: expected success, found unspecified launch failure" in errors["cuGraphLaunch"]


@pytest.mark.parametrize(
    ("status", "sticky", "functions"),
    [(LAUNCH_FAILED, True, ["cuGraphLaunch"]), (OUT_OF_MEMORY, False, ["cuMemAlloc", "cuMemHostAlloc"])],
)
def test_a_fault_and_a_lack_of_memory(
    status: int,
    sticky: bool,
    functions: list[str],
    on_null_driver: OnNullDriver,
    null_bundle: Path,
    wanted: list[Images],
) -> None:
    """After a fault, another pipeline draws in the same process."""
    outcomes = on_null_driver(scenarios.fail_each, null_bundle, "plain", wanted, status, functions, sticky=sticky)
    assert len(outcomes) == len(functions)
    for outcome in outcomes:
        check(outcome, status, sticky)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_every_call_fails(way: str, on_null_driver: OnNullDriver, null_bundle: Path, wanted: list[Images]) -> None:
    for outcome in on_null_driver(scenarios.fail_each, null_bundle, way, wanted, LAUNCH_FAILED):
        check(outcome, LAUNCH_FAILED, sticky=False)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_every_function_faults(way: str, on_null_driver: OnNullDriver, null_bundle: Path, wanted: list[Images]) -> None:
    functions = (*FUNCTIONS, *EVENTS)
    outcomes = on_null_driver(scenarios.fail_each, null_bundle, way, wanted, LAUNCH_FAILED, functions, sticky=True)
    for outcome in outcomes:
        check(outcome, LAUNCH_FAILED, sticky=True)


@pytest.mark.parametrize("way", changes.SINGLE)
def test_memory_is_freed_in_time(way: str, on_null_driver: OnNullDriver, null_bundle: Path) -> None:
    """Not while what is enqueued uses it, and not by the garbage collector during a capture."""
    assert on_null_driver(changes.SINGLE[way], null_bundle) == []


def test_the_callers_context_is_restored(on_null_driver: OnNullDriver, null_bundle: Path) -> None:
    assert on_null_driver(changes.draw_with_a_context, null_bundle) == (True, [])


# --- machines


GPUS = "NVIDIA GeForce RTX 4090,8.9,24000000000;NVIDIA GeForce GTX 1080,6.1,8000000000"


def test_a_gpu_is_chosen_by_index_or_uuid(null_library: Path) -> None:
    first, second = "10101010-1010-1010-1010-101010101010", "20202020-2020-2020-2020-202020202020"
    with null_process(null_library, NULL_GPUS=GPUS) as call:
        for device in (1, f"GPU-{second}", "gpu-2020"):
            assert call(changes.open_device, device).startswith("NVIDIA GeForce GTX 1080")
        assert call(changes.open_device, 0).startswith("NVIDIA GeForce RTX 4090")
        fix = "pass the index or UUID of a GPU that `nvidia-smi -L` lists."
        assert call(changes.open_device, 2) == (
            f"TargetError: device 2: expected an NVIDIA GPU, found 2 in all, numbered from 0; {fix}"
        )
        assert call(changes.open_device, "GPU-3") == (
            f"TargetError: device GPU-3: expected an NVIDIA GPU, "
            f"found none of that UUID among GPU-{first}, GPU-{second}; {fix}"
        )


def test_a_driver_without_pools_serves_all_memory(null_library: Path, null_bundle: Path, wanted: list[Images]) -> None:
    """As some under Windows, which say that they have pools: TensorRT's own memory comes from the device, too."""
    with null_process(null_library, NULL_NO_POOLS="1") as call:
        for way in ("plain", "low memory"):
            seen = call(scenarios.draw, null_bundle, way)
            assert np.array_equal(seen.pictures, wanted)
            assert seen.wrong == []


def test_a_gpu_with_a_time_limit_runs_in_parts(null_library: Path, null_bundle: Path, wanted: list[Images]) -> None:
    with null_process(null_library, NULL_TIME_LIMIT="1") as call:
        seen = call(scenarios.draw, null_bundle, "plain")
    assert np.array_equal(seen.pictures, wanted)
    assert seen.calls.count("cuGraphLaunch") == 3, "what comes before the step, the step, the decoding"
    assert seen.calls.count("cuEventSynchronize") == 1


def test_a_plan_that_cannot_be_captured(on_null_driver: OnNullDriver, null_bundle: Path, wanted: list[Images]) -> None:
    seen = on_null_driver(changes.draw_uncaptured, null_bundle, "vae_decoder")
    assert np.array_equal(seen.pictures, wanted)
    assert seen.wrong == []
    assert not {"cuStreamBeginCapture", "cuGraphLaunch"} & {*seen.calls}


def test_low_memory_loads_plans_once_and_weights_each_time(
    on_null_driver: OnNullDriver, null_bundle: Path, unchanged: Callable[[str], Seen]
) -> None:
    """Contexts, with the kernels that they compiled, stay: a picture allocates weights, scratch memory and no more."""
    components = len(read_manifest(null_bundle).components)
    assert unchanged("low memory").calls.count("cuMemAllocAsync") == components
    assert on_null_driver(changes.loads_in_low_memory, null_bundle) == components


def test_a_gpu_is_made_current_for_a_compiler(null_library: Path) -> None:
    with null_process(null_library, NULL_GPUS=GPUS) as call:
        assert call(changes.make_current, 1) == (True, [])


def test_the_driver_tells_the_memory_in_use(null_library: Path) -> None:
    with null_process(null_library, NULL_GPUS=GPUS) as call:
        assert call(changes.used_by_a_device, 1) == (1 << 20, [])


def test_a_gpu_for_a_target_without_one_is_refused(null_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="device: expected None, because cpu runs on the processor, found 1; leave"):
        Pipeline(null_bundle, "cpu", device=1)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"NULL_CUDA": "12040"}, "expected one for CUDA 13, found CUDA 12.4; update the driver, or run"),
        ({"NULL_GPUS": ""}, r"found no CUDA-capable device is detected, CUresult 100; run `nvidia-smi`, or run"),
    ],
)
def test_only_an_old_driver_is_to_be_updated(null_library: Path, environment: dict[str, str], found: str) -> None:
    with null_process(null_library, **environment) as call:
        assert found in call(changes.open_device, 0)


@pytest.mark.full
def test_the_tests_for_a_gpu_run(null_library: Path) -> None:
    """Those of the device, on this driver: NVIDIA's own libraries do not take it for theirs."""
    path, chosen = "tests/runtime/devices/test_gpu.py", "memory_is_refused or failed_capture"
    command = [sys.executable, "-m", "pytest", path, "-m", "gpu", "-k", chosen]
    environment = os.environ | {"LD_LIBRARY_PATH": str(null_library.parent), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout
