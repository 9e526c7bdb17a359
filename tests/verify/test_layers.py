"""``koala verify --layers`` names the layer that is wrong, by its name in the graph and in the checkpoint."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from polygraphy.comparator import IterationResult, RunResults

import koala_verify.layers
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import RTX, TARGETS
from koala_cli.main import run_app
from koala_runtime.preflight import obstacle
from koala_verify.layer_comparison import GraphTensor, judge
from koala_verify.layer_runners import REFERENCE
from koala_verify.layers import aligned, compare_layers
from koala_verify.torch_values import Operator
from tests.support.bundles import TINY
from tests.support.checkpoints import SHAPES
from tests.support.koala_tiny import CHECKPOINT
from tests.support.negated import Weight, draw_layers, with_changed

Array = NDArray[np.float32]
SHAPE = "koala-700m-like"
FOLDERS = {"vae_decoder": "vae", "text_encoder_2": "text_encoder_2", "denoiser": "unet", "text_encoder": "text_encoder"}
DRAWN = (
    *(("vae_decoder", "convolution", 1), ("denoiser", "linear", 1), ("text_encoder_2", "norm", 1)),
    *(
        ("denoiser", "convolution", 2),
        ("text_encoder", "linear", 1),
        ("denoiser", "norm", 2),
        ("vae_decoder", "norm", 1),
    ),
    ("vae_decoder", "linear", 1),
)
"""How many layers of each component and kind: ten; those of the first line are changed in `make test`."""


def drawn(bundle: Path, component: str, kind: str, count: int) -> list[Weight]:
    layers = draw_layers(bundle, CHECKPOINT, component, FOLDERS[component])
    return [layer for layer in layers if layer.kind == kind][:count]


@pytest.mark.parametrize(
    ("component", "kind", "count"),
    [*DRAWN[:3], *(pytest.param(*each, marks=pytest.mark.full) for each in DRAWN[3:])],
)
def test_a_negated_weight_is_found(
    component: str, kind: str, count: int, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = bundle(TINY)
    weights = drawn(path, component, kind, count)
    assert len(weights) == count
    for index, weight in enumerate(weights):
        layers = compare_layers(with_changed(path, tmp_path / str(index), weight), str(CHECKPOINT), component, "cpu")
        first = layers.first
        assert first is not None
        assert weight.name in first.weights
        assert first.module == f"{weight.folder}/{weight.name.removesuffix('.weight')}"
        before = layers.layers[: layers.layers.index(first)]
        assert all(layer.passed for layer in before)


def test_ten_layers_are_drawn() -> None:
    assert sum(count for *_, count in DRAWN) == 10


QUICK = (SHAPE, "denoiser", "fp32")
BUNDLES = [(shape, component, precision) for shape in SHAPES for component in FOLDERS for precision in ("fp32", "fp16")]


@pytest.mark.parametrize(
    ("shape", "component", "precision"),
    [QUICK, *(pytest.param(*each, marks=pytest.mark.full) for each in BUNDLES if each != QUICK)],
)
def test_a_right_bundle_passes_in_portions(
    shape: str,
    component: str,
    precision: str,
    bundle: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every weight belongs to a layer that was compared, however many portions the tensors come in."""
    if shape == SHAPE:
        monkeypatch.setattr(koala_verify.layers, "PORTION", 1 << 20)
    reports: list[str] = []
    path = bundle(shape, precision=precision)
    layers = compare_layers(path, str(checkpoint(shape)), component, "cpu", report=reports.append)
    assert layers.first is None
    names = [layer.tensor for layer in layers.layers]
    assert len(names) == len({*names})
    outputs = {tensor.name for tensor in read_manifest(path).component(component).outputs}
    assert outputs & {*names} == outputs - {"images"}
    if component == "denoiser":
        from koala_export.checkpoint import FolderCheckpoint

        weights = {name for layer in layers.layers for name in layer.weights}
        assert weights == FolderCheckpoint(checkpoint(shape), precision).weight_names("unet")
        assert {layer.part for layer in layers.layers} == {"prologue", "denoiser"}
        if shape == SHAPE:
            assert len([line for line in reports if line.startswith("denoiser: PyTorch")]) > 1


def test_the_command(bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a right bundle: a table, and values that Polygraphy's own tools read."""
    saved = tmp_path / "saved"
    verify = ["verify", str(CHECKPOINT), str(bundle(TINY)), "--layers", "text_encoder", "--target", "cpu"]
    assert run_app([*verify, "--save", str(saved)]) == 0
    shown = "".join(capsys.readouterr().out.split())  # a narrow table folds long names
    assert "text_model.encoder.layers.1.mlp.fc2" in shown
    assert ",0outofbounds;" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (file,) = saved.iterdir()
    inspect = [sys.executable, "-c", "from polygraphy.tools import main; main()", "inspect", "data", str(file)]
    done = subprocess.run(inspect, capture_output=True, text=True, check=True)
    assert re.findall(r"---- (\w+) +\(1 iterations\)", done.stdout) == ["pytorch", "cpu"]
    assert done.stdout.count("layer_norm_2 [dtype=") == 2
    assert run_app([*verify, "--save", str(saved)]) == 2
    assert f"--save: expected a new folder in one that exists, found {saved}, which exists" in capsys.readouterr().err


def test_values_that_are_not_finite(
    bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weight,) = drawn(bundle(TINY), "text_encoder", "linear", 1)
    copy = with_changed(bundle(TINY), tmp_path / "copy", weight, lambda value: np.full_like(value, np.nan))
    assert run_app(["verify", str(CHECKPOINT), str(copy), "--layers", "text_encoder", "--target", "cpu", "--json"]) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["passed"] is False
    assert math.isnan(found["first"]["error"])
    assert weight.name in found["first"]["weights"]
    assert len(found["worst"]) == 10
    assert math.isnan(found["worst"][0]["error"])
    assert found["layers"][0]["passed"] is True
    said = f"found differences in text_encoder from {found['first']['tensor']} ({found['first']['module']} with "
    assert said in " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--layers", "unet"),
            "--layers: expected text_encoder or text_encoder_2 or denoiser or vae_decoder, found 'unet'; pass one of "
            "these.",
        ),
        (
            ("--layers", "denoiser", "--html", "page.html"),
            "--html: expected nothing beside --layers, which draws no pictures, found page.html; see `koala verify "
            "--help`.",
        ),
        (("--save", "folder"), "--save: expected --layers with it, found folder; see `koala verify --help`."),
        (
            ("--layers", "denoiser", "--target", "simulated"),
            "--target: expected tensorrt or rtx or cuda or cpu, found 'simulated'; pass one of these.",
        ),
    ],
)
def test_wrong_options(
    options: tuple[str, ...], said: str, bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["verify", str(CHECKPOINT), str(bundle(TINY)), *options]) == 2
    assert capsys.readouterr().err.strip() == f"error {said}"


def test_another_checkpoint(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["verify", str(checkpoint(SHAPE)), str(bundle(TINY)), "--layers", "denoiser"]) == 2
    assert "SOURCE: expected the checkpoint that the bundle was made from, found another one" in capsys.readouterr().err


def test_without_polygraphy(
    bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr("koala_cli.extras.find_spec", lambda name: None if name == "polygraphy" else there(name))
    assert run_app(["verify", str(CHECKPOINT), str(bundle(TINY)), "--layers", "denoiser"]) == 2
    said = capsys.readouterr().err
    assert "found no polygraphy; install them with `pip install koala-trt[bench]`" in said


def test_layouts_of_a_graph_are_undone() -> None:
    wanted = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(aligned(wanted.swapaxes(0, 1), wanted, 0), wanted)
    assert np.array_equal(aligned(np.stack([wanted * 0, wanted]).swapaxes(1, 2), wanted, 2), wanted)
    table = np.zeros((32, 40), np.float32)
    table[-1, :24] = wanted.ravel()
    assert np.array_equal(aligned(table, wanted, 32), wanted)
    square = np.arange(36, dtype=np.float32).reshape(3, 3, 4)
    assert np.array_equal(aligned(square, square, 0), square)
    assert np.array_equal(aligned(square.swapaxes(0, 1), square, 0), square)
    assert aligned(wanted, np.zeros((5, 5), np.float32), 0).shape == (2, 3, 4), "left for the comparison to refuse"


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_rtx_compiles_a_graph_with_tensors_inside_as_outputs(bundle: Callable[..., Path]) -> None:
    """Running it takes a GPU; that its parser keeps every name, and that the compiler takes the network, does not."""
    from polygraphy.logger import G_LOGGER

    pytest.importorskip("tensorrt_rtx")
    from koala_verify.layer_runners import marked_network

    path = bundle(TINY) / "onnx" / "vae_decoder.onnx"
    names = [tensor.name for tensor in koala_verify.layers._tensors(path)]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        network = marked_network(RTX, path, [*names, "images"])
        from polygraphy.backend.trt import EngineBytesFromNetwork

        assert len(bytes(EngineBytesFromNetwork(network)())) > 1000


@pytest.mark.gpu
@pytest.mark.parametrize("component", FOLDERS)
@pytest.mark.parametrize("target", [target for target in TARGETS if target.needs_gpu], ids=str)
def test_on_a_gpu(target: Any, component: str, bundle: Callable[..., Path]) -> None:
    if problem := obstacle(target):
        pytest.skip(problem)
    layers = compare_layers(bundle(TINY), str(CHECKPOINT), component, target.name)
    assert layers.target == target.name
    assert layers.first is None


def test_no_such_component(bundle: Callable[..., Path]) -> None:
    with pytest.raises(ArgumentError, match=r"component: expected text_encoder .*, found 'prologue'"):
        compare_layers(bundle(TINY), str(CHECKPOINT), "prologue")


def test_a_difference_has_the_errors_of_what_it_was_made_of() -> None:
    """As on an H100, where two predictions of the U-Net were within their bounds and their small difference was not."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(1000).astype(np.float32)
    second = first + 0.1 * rng.standard_normal(1000).astype(np.float32)
    noise = 0.006 * rng.standard_normal(1000).astype(np.float32)
    wanted = {"a": first, "b": second, "d": second - first}
    tensors = [GraphTensor(name, "Conv", False) for name in "ab"]
    operators = dict.fromkeys("abd", Operator("", (1000,), "", ()))

    def passed(minuends: tuple[str, ...], difference: Array) -> bool:
        got = {"a": first, "b": second + noise, "d": difference}
        results = RunResults([(REFERENCE, [IterationResult(wanted)]), ("cuda", [IterationResult(got)])])
        portion = [*tensors, GraphTensor("d", "Sub", False, minuends)]
        return all(layer.passed for layer in judge("denoiser", portion, operators, results, "fp16"))

    assert passed(("b", "a"), second + noise - first)
    assert not passed((), second + noise - first)
    assert not passed(("b", "a"), first - second), "a wrong sign"
    assert not passed(("b", "a"), second - first + 30 * noise)
