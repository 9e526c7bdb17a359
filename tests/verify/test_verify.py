"""``koala verify`` passes what is right, and names what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import koala_runtime.pipeline
from koala_bundle.files import file_entry, write_sealed
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU
from koala_cli.main import run_app
from koala_engines.build import build_engines
from koala_verify import perceptual
from koala_verify.page import difference_map, page
from koala_verify.pixels import psnr
from koala_verify.verify import verify
from tests.support.checkpoints import SHAPES, save_clip_tokenizers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = "koala-700m-like"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", [SHAPE, *(pytest.param(s, marks=pytest.mark.full) for s in SHAPES if s != SHAPE)])
def test_a_right_bundle_passes(
    shape: str, precision: str, bundle: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    if precision == "fp16" and SHAPES[shape].force_upcast:
        pytest.skip("its pictures overflow float16 by intention; test_rescale is about that")
    verification = verify(bundle(shape, precision=precision), str(checkpoint(shape)))
    assert verification.failures == []
    assert {output.component for output in verification.outputs} == {
        *("text_encoder", "text_encoder_2", "denoiser", "vae_decoder")
    }
    assert {output.runner for output in verification.outputs} == {"onnx", "cpu"}
    assert len(verification.outputs) == 2 * 6
    assert len(verification.pictures) == len(verification.pairs) == 3
    for output in verification.outputs:
        assert output.not_finite == 0
        assert output.psnr > (80 if precision == "fp32" else 40) or output.tensor == "images"


def change_weights(path: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Change the largest weight of a component, digests and all, as a bug in an exporter would have."""
    manifest = read_manifest(path)
    graph, data = manifest.component(name).files
    model = onnx.load(path / graph)
    tensor = max(model.graph.initializer, key=lambda each: int(np.prod(each.dims)))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).copy(), tensor.name))
    (path / data).unlink()
    onnx.save(model, path / graph, save_as_external_data=True, location=Path(data).name)
    files = {**manifest.files, graph: file_entry(path / graph), data: file_entry(path / data)}
    write_sealed(path / "manifest.json", replace(manifest, files=files))
    build_engines(path, CPU)
    return path


@pytest.mark.parametrize(
    ("component", "change", "named"),
    [
        ("denoiser", lambda weight: -weight, "denoiser: next_latents (onnx)"),
        ("vae_decoder", lambda weight: weight * 1.5, "vae_decoder: images (onnx)"),
    ],
)
def test_a_wrong_weight_is_named(
    component: str,
    change: Any,
    named: str,
    bundle: Callable[..., Path],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = change_weights(shutil.copytree(bundle(SHAPE), tmp_path / "bundle"), component, change)
    html = tmp_path / "page.html"
    assert run_app(["verify", str(checkpoint(SHAPE)), str(copy), "--json", "--html", str(html)]) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["passed"] is False
    assert f"found differences in {named}" in " ".join(shown.err.split())
    wrong = {output["component"] for output in found["outputs"] if not output["passed"]}
    assert wrong == {component}, "and no other"
    page = html.read_text(encoding="utf-8")
    assert page.count("<img") == 9
    assert named in page


def test_a_wrong_plan_and_a_wrong_graph_are_distinguished(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The engines were built from another graph than the one that is there now: only the plan differs."""
    copy = change_weights(
        shutil.copytree(bundle(SHAPE), tmp_path / "bundle"), "text_encoder", lambda weight: weight[::-1]
    )
    right = bundle(SHAPE)
    shutil.copytree(right / "onnx", copy / "onnx", dirs_exist_ok=True)
    shutil.copy(right / "manifest.json", copy / "manifest.json")
    record = copy / "engines" / "cpu" / "engine.json"
    content = json.loads(record.read_text())
    digests = read_manifest(right).onnx_digests()
    for plan in content["plans"].values():
        plan["onnx"] = {path: digests[path] for path in plan["onnx"]}
    write_sealed(record, content)
    failures = verify(copy, str(checkpoint(SHAPE))).failures
    assert failures[0] == "text_encoder: hidden_states (cpu)"
    assert not [failure for failure in failures if "(onnx)" in failure]


def test_swapped_guidance_is_seen(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every component is right; the pictures are not."""
    make_request = koala_runtime.pipeline.make_request

    def swapped(*args: Any, **kwargs: Any) -> Any:
        request = make_request(*args, **kwargs)
        return replace(request, prompt=request.negative, negative=request.prompt)

    monkeypatch.setattr(koala_runtime.pipeline, "make_request", swapped)
    failures = verify(bundle(SHAPE), str(checkpoint(SHAPE))).failures
    assert len(failures) == 3
    assert all(failure.startswith("picture ") for failure in failures)


def test_the_command(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["verify", str(checkpoint(SHAPE)), str(bundle(SHAPE))]) == 0
    shown = capsys.readouterr().out
    assert "denoiser" in shown
    assert "failed" not in shown
    assert run_app(["verify", str(checkpoint("koala-1b-like")), str(bundle(SHAPE))]) == 2
    assert "SOURCE: expected the checkpoint that the bundle was made from" in capsys.readouterr().err
    assert run_app(["verify", str(checkpoint(SHAPE)), str(bundle(SHAPE)), "--seeds", "0"]) == 2


def test_psnr_and_difference_maps() -> None:
    one = np.zeros((2, 2, 3), np.uint8)
    other = one.copy()
    other[0, 0] = (4, 8, 0)
    assert psnr(one, one, 255) == 150
    assert psnr(one, other, 255) == pytest.approx(10 * np.log10(255**2 / (80 / 12)))
    assert difference_map(one, other).tolist() == [[127, 0], [0, 0]]
    assert np.isnan(psnr(one.astype(np.float32), np.full((2, 2, 3), np.nan, np.float32), 255))


def test_figures_of_networks_that_are_not_there_are_left_out_with_the_reason(
    bundle: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    verification = verify(bundle(SHAPE), str(checkpoint(SHAPE)))
    assert "lpips cannot be imported" in verification.skipped["LPIPS"]
    assert "`hf download openai/clip-vit-base-patch16` downloads it" in verification.skipped["CLIP score"]
    assert {(picture.lpips, picture.clip_scores) for picture in verification.pictures} == {(None, None)}
    text = page(verification)
    assert "Without LPIPS: the package" in text
    scored = replace(verification.pictures[0], lpips=0.25, clip_scores=(30.5, 29.5))
    text = page(replace(verification, pictures=(scored, *verification.pictures[1:])))
    assert ", LPIPS 0.2500, CLIP score 30.50 and 29.50:" in text


def test_clip_scores_are_a_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small CLIP of random weights, which a folder holds as the hub's cache would."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    save_clip_tokenizers(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.text_projection.weight.data.neg_()  # so that this picture's cosines are positive
    edges = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(CLIPImageProcessor(**edges), tokenizer)
    for each in (model, processor):
        each.save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(perceptual, "CLIP", str(tmp_path / "clip"))
    score = perceptual.open_clip_score()
    assert not isinstance(score, str)
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    with torch.no_grad():
        inputs = processor(text=["a cat"], images=[picture], return_tensors="pt")
        one, other = model(**inputs).image_embeds[0], model(**inputs).text_embeds[0]
    cosine = float(one @ other / (one.norm() * other.norm()))
    assert score(picture, "a cat") == pytest.approx(max(0.0, 100 * cosine), abs=1e-4)
    assert len({score(picture, prompt) for prompt in ("a cat", "a red circle", "a koala in a tree")}) > 1
