"""One bundle for a fleet: each machine gets the engines of its GPU, or the processor's with the reason, or a sentence.

Plans are written by stand-ins for the compilers; what is built where, keys, folders and choices are the real ones.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from koala_bundle.engine_record import engine_variants
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.targets import CPU, RTX, TENSORRT
from koala_engines.build import build_engines
from koala_machine.support import TURING
from koala_runtime.selection import open_engines
from tests.support.fleet import (
    A100,
    CUDA_12,
    GTX_1080,
    H100,
    RTX_2080_TI,
    RTX_3060_TI,
    RTX_4090,
    UUIDS,
    Compiled,
    Machine,
    be,
    make_bundle,
)

DATA_CENTRE, ADA = "nvidia-a100-sxm4-40gb-8.0", "nvidia-geforce-rtx-4090-8.9"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with plans of two models of GPU, of rtx with Turing and without, and of the processor."""
    bundle, compiled = make_bundle(tmp_path / "bundle"), Compiled(monkeypatch)
    for gpu, targets in ((RTX_4090, (TENSORRT, RTX, CPU)), (A100, (TENSORRT, RTX)), (RTX_2080_TI, (RTX,))):
        be(Machine((gpu,)), monkeypatch)
        for target in targets:
            build_engines(bundle, target)
    # The second machine added its own plans and found those of rtx up to date.
    sets = [line.removesuffix(" denoiser") for line in compiled.log if line.endswith(" denoiser")]
    assert sets == [f"tensorrt {ADA}", "rtx", "cpu", f"tensorrt {DATA_CENTRE}", f"rtx {TURING}"]
    return bundle


def test_folders(fleet: Path) -> None:
    assert engine_variants(fleet, TENSORRT) == [DATA_CENTRE, ADA]
    assert engine_variants(fleet, RTX) == ["", TURING]
    assert engine_variants(fleet, CPU) == [""]
    folders = {path.parent.relative_to(fleet).as_posix() for path in fleet.rglob("engine.json")}
    assert folders == {
        "engines/cpu",
        "engines/rtx",
        f"engines/rtx-{TURING}",
        f"engines/tensorrt/{ADA}",
        f"engines/tensorrt/{DATA_CENTRE}",
    }


# Machine, index of the GPU, the folder of the engines that it gets, and what is logged of the better ones.
OLD_DRIVER = Machine((RTX_4090,), cuda="12.4")
TWO_GPUS = Machine((RTX_3060_TI, A100))
NEEDS = "expected an NVIDIA driver for CUDA 13, which {} needs, found one for CUDA 12.4"
CHOICES: dict[str, tuple[Machine, int | None, str, tuple[str, ...]]] = {
    "3060 Ti": (Machine((RTX_3060_TI,)), None, "rtx", ("found plans for NVIDIA A100", "RTX 4090")),
    "2080 Ti": (Machine((RTX_2080_TI,)), None, f"rtx-{TURING}", ("found plans for NVIDIA A100",)),
    "1080": (
        Machine((GTX_1080,)),
        None,
        "cpu",
        (
            "target tensorrt: expected a GPU of compute capability 7.5 or newer, found NVIDIA GeForce GTX 1080",
            "target rtx: expected a GPU of compute capability 7.5 or 8.0 or 8.6 or 8.9 or 12.0 or 12.1",
        ),
    ),
    "4090 on a CUDA 12 driver": (
        OLD_DRIVER,
        None,
        "cpu",
        (
            NEEDS.format("tensorrt-cu13"),
            "install `koala-trt[tensorrt-cu12]`",
            NEEDS.format("tensorrt-rtx-cu13"),
            "install `koala-trt[rtx-cu12]`",
        ),
    ),
    "4090 on a CUDA 12 driver with its wheels": (
        Machine((RTX_4090,), cuda="12.4", wheels=CUDA_12),
        None,
        f"tensorrt/{ADA}",
        (),
    ),
    "A100": (Machine((A100,)), None, f"tensorrt/{DATA_CENTRE}", ()),
    "H100": (
        Machine((H100,)),
        None,
        "cpu",
        (
            "expected plans for NVIDIA H100 80GB HBM3 (compute capability 9.0), the GPU of this machine",
            "target rtx: expected a GPU of compute capability",
        ),
    ),
    "two GPUs, the first": (TWO_GPUS, None, "rtx", ("the GPU of this machine",)),
    "two GPUs, the second": (TWO_GPUS, 1, f"tensorrt/{DATA_CENTRE}", ()),
    "none": (Machine((), cuda=None), None, "cpu", ("expected an NVIDIA GPU, found no NVIDIA driver",)),
}


@pytest.mark.parametrize("case", CHOICES)
def test_each_machine_gets_its_engines(
    case: str, fleet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine, device, folder, reasons = CHOICES[case]
    be(machine, monkeypatch)
    caplog.clear()
    engines = open_engines(fleet, device=device)
    assert engines.folder == fleet / "engines" / folder
    assert engines.device == device
    said = [record for record in caplog.records if record.name == "koala_runtime.selection"]
    for reason in reasons:
        assert any(reason in record.message for record in said), [record.message for record in said]
    assert bool(said) == bool(reasons)
    levels = {record.levelno for record in said}
    assert levels <= {logging.WARNING if machine.gpus else logging.INFO}, "a GPU that stays unused is worth a warning"


PROCESSOR = "run target cpu."
SENTENCES: dict[str, tuple[Machine, str, str]] = {
    "H100, rtx": (
        Machine((H100,)),
        "rtx",
        "target rtx: expected a GPU of compute capability 7.5 or 8.0 or 8.6 or 8.9 or 12.0 or 12.1, found NVIDIA H100 "
        "80GB HBM3 (compute capability 9.0); build and run target tensorrt on this machine, or run target cpu.",
    ),
    "H100, tensorrt": (
        Machine((H100,)),
        "tensorrt",
        "engines for tensorrt in {bundle}: expected plans for NVIDIA H100 80GB HBM3 (compute capability 9.0), the GPU "
        "of this machine, found plans for NVIDIA A100-SXM4-40GB (compute capability 8.0), and for NVIDIA GeForce RTX "
        "4090 (compute capability 8.9); build them on this machine with `koala engines {bundle} --target tensorrt`.",
    ),
    "1080, rtx": (
        Machine((GTX_1080,)),
        "rtx",
        "target rtx: expected a GPU of compute capability 7.5 or 8.0 or 8.6 or 8.9 or 12.0 or 12.1, found NVIDIA "
        "GeForce GTX 1080 (compute capability 6.1); run target cpu.",
    ),
    "4090 on a CUDA 12 driver, rtx": (
        OLD_DRIVER,
        "rtx",
        "target rtx: expected an NVIDIA driver for CUDA 13, which tensorrt-rtx-cu13 needs, found one for CUDA 12.4; "
        "update the NVIDIA driver to r580 or newer, or install `koala-trt[rtx-cu12]` in a new environment.",
    ),
    "4090 on a driver of CUDA 11, rtx": (
        Machine((RTX_4090,), cuda="11.8"),
        "rtx",
        "target rtx: expected an NVIDIA driver for CUDA 13, which tensorrt-rtx-cu13 needs, found one for CUDA 11.8; "
        "update the NVIDIA driver to r580 or newer.",
    ),
    "none, tensorrt": (
        Machine((), cuda=None),
        "tensorrt",
        "target tensorrt: expected an NVIDIA GPU, found no NVIDIA driver (libcuda.so.1 cannot be loaded); "
        "run target cpu.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_target_that_cannot_run_is_refused_in_words(case: str, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, target, sentence = SENTENCES[case]
    be(machine, monkeypatch)
    with pytest.raises(TargetError) as caught:
        open_engines(fleet, target)
    assert str(caught.value) == sentence.format(bundle=fleet)


def test_turing_needs_plans_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    be(Machine((RTX_3060_TI,)), monkeypatch)
    build_engines(bundle, RTX)
    be(Machine((RTX_2080_TI,)), monkeypatch)
    found = "found plans for 8.0 or 8.6 or 8.9 or 12.0 or 12.1; build them on this machine with"
    with pytest.raises(TargetError, match=found):  # and cpu, which is not there either, is not named instead
        open_engines(bundle)
    build_engines(bundle, RTX)
    assert open_engines(bundle).variant == TURING


def test_a_gpu_that_is_too_small_is_not_chosen(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    be(Machine(((RTX_3060_TI[0], "8.6", 1000),)), monkeypatch)
    assert open_engines(fleet).target == CPU
    assert "engines for rtx" in caplog.text
    assert "expected a GPU with" in caplog.text


def test_a_library_that_is_missing_is_named(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("koala_runtime.preflight.find_spec", lambda name: None if "rtx" in name else object())
    be(Machine((RTX_3060_TI,)), monkeypatch)
    assert open_engines(fleet).target == CPU
    assert "expected the Python package tensorrt_rtx, found none; install it with `pip install koala-trt[rtx]`" in (
        caplog.text
    )


def test_a_damaged_record_of_another_gpu_does_no_harm(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fleet / "engines" / "tensorrt" / ADA / "engine.json").write_text("{")
    be(Machine((A100,)), monkeypatch)
    assert open_engines(fleet).variant == DATA_CENTRE


def test_a_device_is_for_a_gpu(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be(TWO_GPUS, monkeypatch)
    with pytest.raises(ArgumentError, match=r"^device: expected None, because cpu runs on the processor, found 1"):
        open_engines(fleet, "cpu", 1)


def test_a_device_is_not_replaced_by_the_processor(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(TWO_GPUS, monkeypatch)
    assert open_engines(fleet, device=UUIDS[1]).variant == DATA_CENTRE
    for target in (None, "rtx"):
        with pytest.raises(
            TargetError, match=r"^device 2: expected an NVIDIA GPU, found 2 in all, numbered from 0; pass"
        ):
            open_engines(fleet, target, 2)
    be(Machine((GTX_1080,)), monkeypatch)
    assert open_engines(fleet).target == CPU
    with pytest.raises(TargetError, match=r"^target tensorrt: expected a GPU of compute capability 7\.5 or newer"):
        open_engines(fleet, device=0)
    Compiled(monkeypatch)
    build_engines(make_bundle(tmp_path / "cpu only"), CPU)
    with pytest.raises(ArgumentError, match=r"^device: expected None, because cpu runs on the processor, found 0"):
        open_engines(tmp_path / "cpu only", device=0)


def test_opening_reads_each_file_once(fleet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And again after a change, or when asked to."""
    monkeypatch.setenv("KOALA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("koala_bundle.checked._SETTLED_NS", -(10**9))
    be(Machine((A100,)), monkeypatch)
    engines = open_engines(fleet)
    read: list[str] = []
    real = Path.open  # by which digests are read

    def spy(self: Path, *arguments: object, **named: object) -> object:
        read.append(self.name)
        return real(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    open_engines(fleet)
    assert not [name for name in read if name.endswith(".plan") or name == "tokenizer.json"]
    open_engines(fleet, verify=True)
    assert {name for name in read if name.endswith(".plan")} == {f"{name}.plan" for name in engines.components}
