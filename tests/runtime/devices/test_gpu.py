"""What only an NVIDIA GPU can show; ``make test-gpu``. Skipped with the reason where there is none.

The capture tests need torch with CUDA and no TensorRT: their stages are torch modules. The others build and run real
plans with whatever is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from koala_bundle.errors import DeviceError
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CUDA, RTX, TENSORRT, Target
from koala_engines.availability import default_targets
from koala_engines.build import build_engines
from koala_machine.driver import query_driver
from koala_runtime import Pipeline
from koala_runtime.devices.base import Tensor
from koala_runtime.devices.cpu import CpuDevice
from koala_runtime.devices.cuda import CudaDevice
from koala_runtime.executor import Executor
from koala_runtime.preflight import obstacle
from koala_runtime.program import make_program
from koala_runtime.run import Run
from tests.support.judge import judge
from tests.support.koala_tiny import requests, words

PROBLEM = query_driver().problem
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))]


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    device = CudaDevice()
    with device.current():
        yield device
    device.close()


# --- the device and the capture, with torch modules as stages


class TorchPlan:
    """A component in which every output depends on every input by way of a torch module; seeded by its name."""

    activation_bytes = 256

    def can_capture(self) -> bool:
        return True

    def park(self) -> bool:
        return False

    def unpark(self) -> None:
        raise AssertionError("it was not parked")

    def __init__(self, name: str, outputs: list[str], device: Any) -> None:
        self._outputs, self._device = outputs, device
        self._where = "cuda" if isinstance(device, CudaDevice) else "cpu"
        torch.manual_seed(sum(map(ord, name)))
        layers = torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32)
        self._mix = torch.nn.Sequential(*layers).to(self._where)

    def bind(self, tensors: Mapping[str, Tensor], activations: int) -> Callable[[], bool]:
        views = {name: self._view(at) for name, at in tensors.items()}

        @torch.no_grad()
        def run() -> bool:
            inputs = [view.float().mean() for name, view in views.items() if name not in self._outputs]
            mixed = self._mix(torch.stack(inputs).sum().tanh() * torch.linspace(-1, 1, 32, device=self._where))
            for index, name in enumerate(self._outputs):
                out = views[name]
                value = mixed[index % 32] * 500 + 100 if out.dtype == torch.uint8 else mixed[index % 32]
                out.copy_((views["latents"].float() * 0.7 if name == "next_latents" else 0) + value)
            return True

        def enqueue() -> bool:
            if self._where == "cpu":
                return run()
            with torch.cuda.stream(torch.cuda.ExternalStream(self._device.stream)):
                return run()

        return enqueue

    def save_kernel_cache(self) -> None: ...

    def close(self) -> None: ...

    def _view(self, at: Tensor) -> torch.Tensor:
        if self._where == "cpu":
            import ctypes

            size = int(np.prod(at.shape)) * np.dtype(at.dtype).itemsize
            memory = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(at.address))
            return torch.from_numpy(memory.view(at.dtype).reshape(at.shape))

        class Memory:
            __cuda_array_interface__ = {  # noqa: RUF012
                "shape": at.shape,
                "typestr": np.dtype(at.dtype).str,
                "data": (at.address, False),
                "version": 3,
            }

        return torch.as_tensor(Memory(), device="cuda")


def program_on(device: Any, bundle: Path, steps: int) -> tuple[Executor, Run]:
    manifest = read_manifest(bundle)
    outputs = {entry.name: [tensor.name for tensor in entry.outputs] for entry in manifest.components}
    executor = Executor(device, lambda name: TorchPlan(name, outputs[name], device), [*outputs], "float32")
    return executor, Run(executor, make_program(manifest.components, steps, half="float32"))


def fill(run: Run, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, place in run.program.inputs.items():
        whole = place.dtype == "int32"
        values = rng.integers(0, 600, place.shape) if whole else rng.standard_normal(place.shape)
        run.fill({name: values.astype(place.dtype)})


needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no CUDA")


@needs_torch
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_one_graph_per_picture_replays_right(device: CudaDevice, tiny: Path, steps: int) -> None:
    _, run = program_on(device, tiny, steps)
    _, reference = program_on(CpuDevice(), tiny, steps)
    for seed in (0, 1, 0, 2):
        fill(run, seed)
        fill(reference, seed)
        run.draw()
        whole, latents = run.images.copy(), run.read(run.program.latents[-1])
        reference.draw()
        assert np.abs(whole.astype(int) - reference.images.astype(int)).max() <= 1
        assert np.allclose(latents, reference.read(reference.program.latents[-1]), atol=1e-4)
        run.encode()
        for step in range(steps):
            run.step(step)
        run.decode()
        assert np.array_equal(run.images, whole), "in parts"


@needs_torch
def test_parts_are_timed(device: CudaDevice, tiny: Path) -> None:
    _, run = program_on(device, tiny, 4)
    fill(run, 0)
    times = run.timed()
    assert len(times) == 2 + len(run.program.calls)
    assert all(0 <= seconds < 1 for _, seconds in times)


def test_too_much_memory_is_refused_and_nothing_is_broken(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"GPU memory: expected .* MB in one piece, found .* MB free"):
        device.allocate(1 << 50)
    address = device.allocate(1 << 20)
    pinned, back = device.pin(1 << 20), device.pin(1 << 20)
    pinned[:] = np.random.default_rng(0).integers(0, 256, 1 << 20)
    graph = device.capture([lambda: device.copy_in(address, pinned), lambda: device.copy_out(back, address)])
    pinned[:] = pinned[::-1].copy()
    device.launch(graph)
    device.wait()
    assert np.array_equal(pinned, back)
    device.drop(graph)


def test_a_failed_capture_leaves_the_stream_usable(device: CudaDevice) -> None:
    def stage() -> None:
        raise DeviceError("a stage", expected="success", found="a fault", fix="look")

    with pytest.raises(DeviceError, match="a fault"):
        device.capture([stage])
    device.drop(device.capture([]))
    device.wait()


# --- real plans


@pytest.fixture(scope="module", params=[TENSORRT, RTX, CUDA], ids=str)
def target(request: pytest.FixtureRequest, tiny: Path) -> str:
    target: Target = request.param
    if problem := obstacle(target):
        pytest.skip(problem)
    if target not in (CUDA, *default_targets()):
        pytest.skip(f"{target} cannot be built here")
    build_engines(tiny, target)
    return target.name


def draw(pipe: Pipeline, prompt: str, seed: int, **arguments: Any) -> NDArray[np.uint8]:
    return np.asarray(pipe(prompt, seed=seed, **arguments).images[0])


def assert_same(first: NDArray[np.uint8], second: NDArray[np.uint8], target: str) -> None:
    """ONNX Runtime's GroupNorm adds in no fixed order, so that float16 rounds differently from run to run."""
    assert np.array_equal(first, second) or (target == CUDA.name and psnr(first, second) > 40)


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    mean = float(np.mean((first.astype(float) - second.astype(float)) ** 2))
    return float(10 * np.log10(255**2 / max(mean, 1e-9)))


def test_plans_draw_what_the_processor_draws(tiny: Path, target: str) -> None:
    wanted = requests(1, 10)
    with Pipeline(tiny, "cpu") as cpu, Pipeline(tiny, target) as gpu:
        for seed, request in enumerate(wanted):
            assert psnr(*(draw(pipe, words(request), seed) for pipe in (gpu, cpu))) > 25
        right = [all(judge(draw(gpu, words(r), seed), r).values()) for seed, r in enumerate(wanted)]
        assert sum(right) >= 7


def test_plans_in_low_memory_and_in_parts(tiny: Path, target: str) -> None:
    with Pipeline(tiny, target) as pipe, Pipeline(tiny, target, low_memory=True) as low:
        wanted = draw(pipe, "a large red circle", 1)
        for _ in range(3):  # computed, captured, launched
            assert_same(draw(pipe, "a large red circle", 1), wanted, target)
        assert_same(draw(low, "a large red circle", 1), wanted, target)
        assert_same(draw(pipe, "a large red circle", 1, callback_on_step_end=lambda *_: {}), wanted, target)
        timings = pipe("a large red circle", timings=True).timings
        assert timings is not None
        assert len(timings["denoiser"]) == 10
        on_device = pipe("a large red circle", seed=1, output_type="device").images
        if torch.cuda.is_available():
            assert_same(torch.as_tensor(on_device, device="cuda")[0].cpu().numpy(), wanted, target)


def test_closing_frees_the_gpu(tiny: Path, target: str, device: CudaDevice) -> None:
    with Pipeline(tiny, target) as pipe:
        draw(pipe, "a large red circle", 1)
    before = device.free_bytes() or 0
    for _ in range(10):
        with Pipeline(tiny, target) as pipe:
            draw(pipe, "a large red circle", 1)
    assert abs((device.free_bytes() or 0) - before) < 32 << 20
