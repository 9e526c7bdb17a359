"""The machine that a measurement ran on: hardware, versions, peak rates, memory in use, size of an installation."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from koala_bench.results import Machine, Peak
from koala_machine.driver import query_driver

_PACKAGES = ("koala-trt", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "tensorrt", "tensorrt-rtx-cu13")


def describe_machine(device: int | str = 0) -> Machine:
    """Return this machine's hardware and versions; GPU clocks are those that nvidia-smi reports."""
    driver = query_driver(device=device)
    clocks = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        clocks = done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        gpu=None if driver.gpu is None else str(driver.gpu),
        driver=driver.cuda_version,
        clocks=clocks,
        versions={name: number for name in _PACKAGES if (number := version_of(name))},
    )


def measure_peak(device: int | str = 0) -> Peak:
    """Measure a large matrix product and a large copy, the best of several; float16 on a GPU, else float32."""
    import torch

    gpu = torch.cuda.is_available()
    where = f"cuda:{query_driver(device=device).ordinal}" if gpu else "cpu"
    dtype, size = (torch.float16, 8192) if gpu else (torch.float32, 2048)
    matrix = torch.randn(size, size, device=where, dtype=dtype)
    source = torch.zeros(1 << 28 if gpu else 1 << 26, device=where, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(operation: Callable[[], object], times: int = 7) -> float:
        least = float("inf")
        for _ in range(times):
            if gpu:
                torch.cuda.synchronize(where)
            started = time.perf_counter()
            operation()
            if gpu:
                torch.cuda.synchronize(where)
            least = min(least, time.perf_counter() - started)
        return least

    product, copy = best(lambda: matrix @ matrix), best(lambda: target.copy_(source))
    return Peak(str(dtype).removeprefix("torch."), 2 * size**3 / product, 2 * source.numel() / copy)


def gpu_bytes_in_use() -> int | None:
    """Return the memory in use on the first GPU by all processes, from nvidia-smi; None without a GPU."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return int(done.stdout) << 20 if done.returncode == 0 and done.stdout.strip().isdigit() else None


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
