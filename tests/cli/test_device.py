"""``--device`` chooses a GPU in every subcommand that uses one; ``koala run --verify`` reads every file again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bundle.targets import RTX, TENSORRT
from koala_cli.main import run_app
from koala_engines.build import build_engines
from tests.support.fleet import GB, UUIDS, Compiled, Machine, be, make_bundle

SHAPE = "koala-700m-like"
ROOT = Path(__file__).resolve().parents[2]
TWO_GPUS = Machine((("NVIDIA GeForce RTX 3060 Ti", "8.6", 8 * GB), ("NVIDIA GeForce GTX 1080", "6.1", 8 * GB)))
NOT_THERE = "error device 2: expected an NVIDIA GPU, found 2 in all, numbered from 0; pass the index or UUID of a"


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert run_app([*command]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, and a bundle with rtx engines."""
    bundle = make_bundle(tmp_path / "bundle")
    Compiled(monkeypatch)
    be(TWO_GPUS, monkeypatch)
    build_engines(bundle, RTX)
    return bundle


def test_a_gpu_that_is_not_there(two_gpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(two_gpus)
    for command in (("run", bundle, "a koala"), ("engines", bundle), ("doctor",)):
        assert refusal(capsys, *command, "--device", "2").startswith(NOT_THERE), command


def test_the_gpu_is_the_one_that_is_used(two_gpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is too old for what the first can do, and every subcommand says so of it."""
    bundle, too_old = str(two_gpus), "GTX 1080 (compute capability 6.1); run target cpu."
    for device in ("1", UUIDS[1]):
        assert refusal(capsys, "run", bundle, "a koala", "--device", device).endswith(too_old)
        assert refusal(capsys, "engines", bundle, "--target", "tensorrt", "--device", device).endswith(too_old)
        assert run_app(["doctor", "--json", "--device", device]) == 0
        assert "GTX 1080" in json.loads(capsys.readouterr().out)["machine"]["gpu"]


def test_engines_are_built_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made current for the compiler, and tuning measures on it."""
    bundle, seen = make_bundle(tmp_path / "bundle"), list[object]()
    Compiled(monkeypatch)
    be(Machine((TWO_GPUS.gpus[1], TWO_GPUS.gpus[0])), monkeypatch)

    class Current:
        def __init__(self, device: object) -> None:
            seen.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def measure(*_: object, device: object) -> float:
        seen.append(device)
        return 1.0

    monkeypatch.setattr("koala_engines.build.current_gpu", Current)
    monkeypatch.setattr("koala_runtime.timing.time_plan", measure)
    command = ["engines", str(bundle), "--target", "tensorrt", "--target", "cpu", "--device", "1", "--tune", "1"]
    assert run_app(command) == 0
    assert [path.name for path in (bundle / "engines" / TENSORRT.name).iterdir()] == ["nvidia-geforce-rtx-3060-ti-8.6"]
    assert seen == ["1", "1", "1", None], "for the GPU, the two components that are tuned, and not for the processor"


def test_all_backends_see_the_same_gpu(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("KOALA_TEST_SEEN", str(tmp_path / "seen"))
    be(TWO_GPUS, monkeypatch)
    command = ["bench", str(checkpoint(SHAPE)), str(bundle(SHAPE)), "--backend", "tests.support.fake_backends:Seeing"]
    assert run_app([*command, "--no-reference", "--rounds", "2", "--device", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "seen").read_text() == UUIDS[1]
    assert "GTX 1080" in json.loads((tmp_path / "results.json").read_bytes())["machine"]["gpu"]


def test_verify_reads_every_file_again(
    bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOALA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("koala_bundle.checked._SETTLED_NS", -(10**9))
    command = ["run", str(bundle(SHAPE)), "a koala", "--steps", "1", "--output", str(tmp_path / "koala.png")]
    assert run_app(command) == 0
    read: set[str] = set()
    real = Path.open  # by which digests are read

    def spy(self: Path, *arguments: object, **named: object) -> object:
        read.add(self.name)
        return real(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    assert run_app(command) == 0
    assert "denoiser.onnx" not in read
    assert run_app([*command, "--verify"]) == 0
    assert {"denoiser.onnx", "vae_decoder.onnx", "tokenizer.json"} <= read
