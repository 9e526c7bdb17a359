"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from koala_bundle.codec import to_json
from koala_bundle.engine_record import read_engine_record
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU, RTX
from koala_cli.main import run_app
from koala_engines.build import build_engines
from koala_runtime import Pipeline, __version__, read_recipe

SHAPE = "koala-700m-like"


def test_a_picture_says_how_it_was_made(
    tmp_path: Path, bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "koala.png"
    prompt = "a koala, 考拉"
    options = ("--negative-prompt", "fog", "--steps", "3", "--guidance-scale", "4", "--seed", "7", "--target", "cpu")
    assert run_app(["run", str(bundle(SHAPE)), prompt, *options, "--output", str(picture)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(picture)
    assert "cpu: seed 7, 3 steps; loaded in " in shown.err
    with Image.open(picture) as image:
        recipe = read_recipe(picture)
        assert recipe.prompt == prompt
        assert recipe.seed == 7
        with Pipeline(bundle(SHAPE)) as pipeline:
            same = pipeline(prompt, negative_prompt="fog", num_inference_steps=3, guidance_scale=4, seed=7).images[0]
        assert image.tobytes() == same.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["koala.png"]


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats(tmp_path: Path, bundle: Callable[..., Path], ending: str) -> None:
    picture = tmp_path / f"koala.{ending}"
    assert run_app(["run", str(bundle(SHAPE)), "a koala", "--steps", "1", "--output", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.size == (96, 64)


def test_inspect(bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle(SHAPE)
    assert run_app(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["manifest"] == to_json(read_manifest(path))
    assert shown["engines"] == {"cpu": to_json(read_engine_record(path, CPU))}
    parts, hoisted = shown["work"]["components"], shown["work"]["hoisted"]
    assert {name: part["runs"] for name, part in parts.items()} == {
        "text_encoder": 1,
        "text_encoder_2": 1,
        "prologue": 1,
        "denoiser": 4,
        "vae_decoder": 1,
    }
    assert hoisted["flops_per_picture"] == 4 * hoisted["flops"] - parts["prologue"]["flops"] > 0
    assert run_app(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in (
        "96 x 64 px",
        "trailing",
        "denoiser",
        "latents float32",
        "onnxruntime",
        "current",
        "RTX 4090",
        "hoisted",
    ):
        assert word in shown.replace("\n", " ")


def test_run_tells_memory_and_time(
    tmp_path: Path, bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The simulated GPU stands in for one; the processor has no budget, but times."""
    for target, words in (("cpu", ()), ("simulated", ("weights", "tensors between components", "with low_memory"))):
        command = ["run", str(bundle(SHAPE)), "a koala", "-v", "--target", target, "--output", str(tmp_path / "a.png")]
        assert run_app(command) == 0
        shown = capsys.readouterr().err
        for word in (*words, "copy in", "text_encoder_2", "prologue", "denoiser", "vae_decoder", "copy out", "picture"):
            assert word in shown
        assert ("GPU memory" in shown) == (target != "cpu")
    assert run_app([*command, "--low-memory"]) == 0


def test_inspect_tells_the_memory_of_gpu_engines(
    bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = bundle(SHAPE, precision="fp16")
    build_engines(path, RTX)
    assert run_app(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["memory"]["rtx"]
    weights, activations = told["weights"], told["activations"]
    assert set(weights) == set(activations) == {entry.name for entry in read_manifest(path).components}
    assert told["total"] == sum(weights.values()) + max(activations.values()) + told["tensors"]
    assert told["low_memory_total"] < told["total"]
    assert run_app(["inspect", str(path)]) == 0
    assert "rtx: GPU memory" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {verb: said["targets"]["cpu"][verb] for verb in ("build", "run")} == {"build": "yes", "run": "yes"}
    assert said["export"] == "yes"
    assert said["machine"]["koala-trt"] == __version__
    assert run_app(["doctor"]) == 0
    assert "koala-trt" in capsys.readouterr().out


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"koala-trt {__version__}\n"
    for wrong in (["draw"], ["run"], ["export", "a"], ["run", "bundle", "cat", "--steps", "many"]):
        assert run_app(wrong) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_failure_is_one_sentence_too(
    bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("[what] it was")

    monkeypatch.setattr("koala_runtime.samplers.classes.Scheduler.table", fail)
    command = ["run", str(bundle(SHAPE)), "a koala", "--output", "koala.png"]
    assert run_app(command) == 1
    shown = capsys.readouterr().err.strip()
    assert shown == "error unexpected ZeroDivisionError: [what] it was; `koala --debug` shows where."
    assert run_app(["--debug", *command]) == 1
    assert "Traceback" in capsys.readouterr().err
