"""What ``koala bench`` says of a GPU is of the GPU that it measures; and all backends are loaded where they fit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bench import hardware
from koala_bench.hardware import describe_machine, fastest_product, gpu_bytes_in_use
from koala_bench.results import Peak
from koala_bench.runner import BenchOptions, run
from koala_bundle.counts import ROOFLINES
from tests.support.fleet import RTX_3060_TI, RTX_4090, UUIDS, Machine, be

SHAPE = "koala-700m-like"
FAKE = "tests.support.fake_backends:"
ROOT = Path(__file__).resolve().parents[2]
TWO_GPUS = Machine((RTX_3060_TI, RTX_4090))
needs_shell = pytest.mark.skipif(sys.platform == "win32", reason="this nvidia-smi is a shell script")

# In the order of PCI the second GPU of CUDA is the first. Each running process holds the megabytes in its file.
NVIDIA_SMI = f"""#!/bin/sh
case "$*" in
  *--id={UUIDS[0]}*) clock=1665 used=100;;
  *--id={UUIDS[1]}*|*--id=0*) clock=2520 used=200;;
  *) exit 6;;
esac
case "$*" in
  *clocks*) echo "$clock MHz, 7001 MHz, 580.95.05";;
  *memory.used*)
    for file in "$KOALA_TEST_HELD"/*; do
      kill -0 "$(basename "$file")" 2>/dev/null && used=$((used + $(cat "$file")))
    done
    echo "$used MiB";;
esac
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KOALA_TEST_HELD", str(tmp_path / "held"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    be(TWO_GPUS, monkeypatch)


@needs_shell
@pytest.mark.parametrize(("device", "clock", "used"), [(0, 1665, 100), (1, 2520, 200), (UUIDS[0], 1665, 100)])
def test_nvidia_smi_is_asked_of_the_gpu_that_is_measured(
    device: int | str, clock: int, used: int, two_gpus: None
) -> None:
    assert describe_machine(device).clocks == f"{clock} MHz, 7001 MHz, 580.95.05"
    assert gpu_bytes_in_use(TWO_GPUS.query_uuid(device=device)) == used << 20


@needs_shell
def test_memory_that_nvidia_smi_does_not_tell_is_asked_of_the_driver(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "used_bytes", lambda gpu: len(gpu))
    assert gpu_bytes_in_use("MIG-7") == 5
    assert gpu_bytes_in_use("GPU-unknown") == 11
    assert gpu_bytes_in_use(None) is None


@needs_shell
@pytest.mark.parametrize(("device", "alone"), [("0", True), ("1", False)])
def test_backends_are_loaded_side_by_side_where_they_fit(
    device: str,
    alone: bool,
    two_gpus: None,
    bundle: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of 4 GB fit 24 GB, and not 8 GB of which a desktop takes some."""
    monkeypatch.setattr("koala_bench.runner.measure_peak", lambda _: Peak("float16", "float16", 1e12, 1e11))
    reported: list[str] = []
    names = tuple(FAKE + name for name in ("Holding", "HoldingToo"))
    options = BenchOptions(names=names, rounds=2, steps=1, reference=False, device=device)
    results = run(bundle(SHAPE), str(checkpoint(SHAPE)), options, reported.append)
    assert results.alone == alone
    assert results.not_measured == {}
    order = [line.rpartition(":")[2] for line in reported if line.startswith("round")]
    one, two = "Holding", "HoldingToo"
    assert order == ([one, one, two, two] * 2 if alone else [one, two] * 3)
    assert [each.device_bytes for each in results.measured] == [4000 << 20] * 2
    how, room = ("one backend at a time", "7.1") if alone else ("side by side", "21.4")
    assert f"{how}: together they take 8.4 of {room} GB of GPU memory" in reported


@pytest.mark.parametrize(("half", "fastest"), [(1.0, "float16"), (3.0, "float32")])
def test_the_peak_is_that_of_the_faster_accumulator(half: float, fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch is told to add up; a GeForce is twice as fast in float16."""
    import torch

    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_accumulation
    monkeypatch.setattr(hardware, "least_seconds", lambda *_: half if settings.allow_fp16_accumulation else 2.0)
    assert fastest_product(torch.ones(2, 2), ("float32", "float16"), print) == (fastest, min(half, 2.0))
    assert settings.allow_fp16_accumulation == before


def test_the_least_time_on_known_gpus_is_a_bound_for_either_accumulator() -> None:
    """TFLOPS of dense float16 with float16 accumulation: H200's data sheet; whitepapers of Ada, and of Ampere's GA102.

    An RTX 3070 (46 multiprocessors at 1.725 GHz) has 81.3; a 3060 Ti 38 of the same at 1.665 GHz.
    """
    rates = {gpu.name: gpu.flops_per_second / 1e12 for gpu in ROOFLINES}
    small = pytest.approx(81.3 * 38 / 46 * 1.665 / 1.725, abs=0.1)
    assert rates == {"H200": 989, "RTX 4090": 330.3, "RTX 3060 Ti": small}
