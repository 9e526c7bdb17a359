"""The machine that a measurement ran on: hardware, versions, peak rates, memory in use, size of an installation."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, TypeAlias

from koala_bench.results import Machine, Peak
from koala_machine.driver import query_driver, query_uuid, used_bytes
from koala_machine.support import WHEELS

_PACKAGES = ("koala-trt", "numpy", "torch", "diffusers", "transformers", *(wheel.package for wheel in WHEELS))

Wait: TypeAlias = Callable[[], object]
"""Waits until a device has done what it was given; does nothing for a processor."""


def describe_machine(device: int | str = 0) -> Machine:
    """Return this machine's hardware and versions; clocks are those that nvidia-smi reports of the GPU ``device``."""
    driver, gpu = query_driver(device=device), query_uuid(device=device)
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        gpu=None if driver.gpu is None else str(driver.gpu),
        driver=driver.cuda_version,
        clocks=_nvidia_smi(gpu, "clocks.sm,clocks.mem,driver_version") if gpu else None,
        versions={name: number for name in _PACKAGES if (number := version_of(name))},
    )


def measure_peak(device: int | str = 0) -> Peak:
    """Measure a large matrix product and a large copy; float16 on a GPU, else float32.

    A GPU's product is measured with both accumulators, since a plan may use either: TensorRT-RTX's plans leave the
    choice to the library. GeForce adds up in float16 twice as fast as in float32. The faster one counts, so that no
    plan can be above it.
    """
    import torch

    if not torch.cuda.is_available():
        return _peak("cpu", "float32", 2048, 1 << 26, ("float32",), lambda: None)
    gpu = f"cuda:{query_driver(device=device).ordinal}"
    peak = _peak(gpu, "float16", 8192, 1 << 28, ("float32", "float16"), partial(torch.cuda.synchronize, gpu))
    torch.cuda.empty_cache()  # what is measured next needs the memory
    return peak


def _peak(where: str, dtype: str, size: int, nbytes: int, accumulators: tuple[str, ...], wait: Wait) -> Peak:
    import torch

    matrix = torch.randn(size, size, device=where, dtype=getattr(torch, dtype))
    source = torch.zeros(nbytes, device=where, dtype=torch.uint8)
    target = torch.empty_like(source)
    accumulator, product = fastest_product(matrix, accumulators, wait)
    copy = least_seconds(lambda: target.copy_(source), wait)
    return Peak(dtype, accumulator, 2 * size**3 / product, 2 * nbytes / copy)


def fastest_product(matrix: Any, accumulators: tuple[str, ...], wait: Wait) -> tuple[str, float]:
    """Return the dtype in which a product of the torch ``matrix`` with itself adds up fastest, and its seconds."""
    import torch

    settings = torch.backends.cuda.matmul
    before, seconds = settings.allow_fp16_accumulation, {}
    for accumulator in accumulators:
        settings.allow_fp16_accumulation = accumulator == "float16"
        seconds[accumulator] = least_seconds(lambda: matrix @ matrix, wait)
    settings.allow_fp16_accumulation = before
    return min(seconds.items(), key=lambda item: item[1])


def least_seconds(operation: Callable[[], object], wait: Wait, times: int = 7) -> float:
    """Return the least time that an operation takes, with the waits for the device around it."""
    least = float("inf")
    for _ in range(times):
        wait()
        started = time.perf_counter()
        operation()
        wait()
        least = min(least, time.perf_counter() - started)
    return least


def gpu_bytes_in_use(gpu: str | None) -> int | None:
    """Return the memory in use by all processes on the GPU with this UUID; None without one.

    nvidia-smi tells it of whole GPUs, the driver also of an instance of a divided one (MIG).
    """
    if gpu is None:
        return None
    told = None if gpu.startswith("MIG-") else _nvidia_smi(gpu, "memory.used")
    amount = (told or "").removesuffix(" MiB")
    return int(amount) << 20 if amount.isdigit() else used_bytes(gpu)


def _nvidia_smi(gpu: str, fields: str) -> str | None:
    """Return what nvidia-smi says of the GPU with this UUID; its indices are not CUDA's."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={fields}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def install_bytes(packages: Iterable[str]) -> int:
    """Return the size on disk of packages and their requirements, without extras."""
    seen: set[str] = set()
    todo, total = [*packages], 0
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # required only on other platforms
        total += sum(_size(Path(str(file.locate()))) for file in found.files or ())
        todo += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in found.requires or () if "extra ==" not in need]
    return total


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def version_of(package: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
