"""Other VAEs than the checkpoint's, and decoders for previews, against diffusers' AutoencoderTiny and pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import ModelOrigin, read_manifest
from koala_cli.main import run_app
from koala_export.exporter import export_bundle
from koala_export.gate import run_onnx
from koala_export.options import options_of
from koala_runtime import Pipeline
from koala_runtime.budget import Budget
from koala_serve.drawing import Drawer
from koala_serve.worker import Batch, Row, Stepped
from koala_verify.pixels import psnr
from koala_verify.reference import open_diffusers
from koala_verify.verify import verify
from tests.support import bundles
from tests.support.checkpoints import save_tiny_vae
from tests.support.diffusers import open_reference
from tests.support.koala_tiny import EXAMPLE

# numpy's, of a coming change
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE, TINY = "koala-700m-like", "koala-tiny"
PREVIEW = EXAMPLE / "preview-decoder"
BOUND = 2 / 255
PROMPT = "a large red circle on a white background"
STEPS = 4
Pixels = NDArray[np.uint8]


def load_tiny(folder: Path) -> Any:
    variant = "fp16" if [*folder.glob("*.fp16.safetensors")] else None
    return diffusers.AutoencoderTiny.from_pretrained(folder, variant=variant, dtype=torch.float32).eval()


@torch.no_grad()
def decode(vae: Any, latents: NDArray[np.float32]) -> Pixels:
    """Decode as diffusers' pipeline does: uint8 NHWC."""
    scaled = torch.from_numpy(latents) / vae.config.scaling_factor
    pixels = vae.decode(scaled, return_dict=False)[0]
    return (pixels * 0.5 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def apart(one: Pixels, other: Pixels) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).max()) / 255


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    """koala-tiny, float16, with its preview decoder."""
    return bundle(TINY, preview_decoder=str(PREVIEW))


@pytest.fixture(scope="module")
def swapped(bundle: Callable[..., Path]) -> Path:
    """Random weights, float32, with another VAE and a decoder for previews beside it."""
    return bundle(SHAPE, vae=str(bundles.tiny_vae(0)), preview_decoder=str(bundles.tiny_vae(1)))


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> Iterator[Pipeline]:
    with Pipeline(tiny, "cpu") as opened:
        yield opened


def looked_at(pipe: Pipeline, **arguments: Any) -> tuple[list[NDArray[np.float32]], list[Pixels], Any]:
    """Return the latents and the preview after every step, and the output."""
    with pipe.steps(PROMPT, **{"seed": 3, "num_inference_steps": STEPS, **arguments}) as steps:
        seen = [(step.latents, step.preview()) for step in steps]
        return [latents for latents, _ in seen], [preview for _, preview in seen], steps.output


@pytest.mark.parametrize("scale", [0.3, 1.0, 15.0])
def test_random_latents_in_both_precisions(tiny: Path, swapped: Path, scale: float) -> None:
    """The exported graphs; large latents, as before the first steps, are in the range that tanh closes."""
    for bundle, component, folder in (
        (tiny, "preview_decoder", PREVIEW),
        (swapped, "vae_decoder", bundles.tiny_vae(0)),
        (swapped, "preview_decoder", bundles.tiny_vae(1)),
    ):
        entry = read_manifest(bundle).component(component)
        latents = np.random.default_rng(1).standard_normal(entry.inputs[0].shape, np.float32) * np.float32(scale)
        got = run_onnx([(entry, bundle / entry.files[0])], {"latents": latents})["images"]
        wanted = decode(load_tiny(folder), latents)
        assert wanted.std() > 10
        assert apart(got, wanted) <= BOUND


@pytest.mark.parametrize(("target", "low_memory"), [("cpu", False), ("simulated", False), ("simulated", True)])
def test_previews_are_what_diffusers_decodes(tiny: Path, pipe: Pipeline, target: str, low_memory: bool) -> None:
    """Twice, because the second time they are captured; the picture is that of the full decoder."""
    vae, plain = load_tiny(PREVIEW), np.asarray(pipe(PROMPT, seed=3, num_inference_steps=STEPS).images[0])
    with Pipeline(tiny, target, low_memory=low_memory) as other:
        for _ in range(2):
            latents, previews, output = looked_at(other)
            for each, preview in zip(latents, previews, strict=True):
                assert apart(preview, decode(vae, each)) <= BOUND
            assert np.array_equal(np.asarray(output.images[0]), plain)
            assert not np.array_equal(previews[-1][0], plain)


def test_the_picture_is_that_of_a_bundle_without(pipe: Pipeline, bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle(TINY), "cpu") as other:
        assert read_manifest(bundle(TINY)).origin.preview_decoder is None
        pictures = [np.asarray(each(PROMPT, seed=3, num_inference_steps=STEPS).images[0]) for each in (pipe, other)]
    assert np.array_equal(*pictures)


def test_callbacks_see_them(pipe: Pipeline) -> None:
    seen: list[tuple[NDArray[np.float32], Pixels]] = []

    def look(_: object, index: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append((tensors["latents"], tensors["images"]))

    names = ["latents", "images"]
    how = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    pipe(PROMPT, seed=3, num_inference_steps=STEPS, **how)
    vae = load_tiny(PREVIEW)
    assert len(seen) == STEPS
    assert all(apart(images, decode(vae, latents)) <= BOUND for latents, images in seen)


def test_a_server_sends_them(pipe: Pipeline) -> None:
    row = Row(PROMPT, None, 3, None, None, "png", 1, frozenset({1, 2}))
    events: list[Any] = []
    drawer = Drawer(pipe)
    drawer.draw(Batch(1, (row,), {"num_inference_steps": STEPS}, True), events.append, lambda: False)
    drawer.close()
    shown = {event.index: event.previews[0] for event in events if isinstance(event, Stepped) and event.previews}
    _, previews, _ = looked_at(pipe)
    assert shown.keys() == {1, 2}
    for index, file in shown.items():
        stream = BytesIO()
        Image.fromarray(previews[index][0]).save(stream, "JPEG", quality=80)
        assert file == stream.getvalue()


def test_they_are_like_the_pictures(pipe: Pipeline) -> None:
    """As the README of koala-tiny says: 30 dB and more of finished latents."""
    _, previews, output = looked_at(pipe, num_inference_steps=10, guidance_scale=2.0)
    assert psnr(np.asarray(output.images[0]), previews[-1][0], 255.0) > 27


def their_pictures(checkpoint: Path, vae: Any, **arguments: Any) -> NDArray[np.float32]:
    parts = {**open_reference(checkpoint).components, "vae": vae}
    theirs = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    images: NDArray[np.float32] = theirs(
        PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **arguments
    ).images
    return images


@pytest.mark.parametrize("case", [SHAPE, pytest.param(TINY, marks=pytest.mark.full)])
def test_pictures_of_another_vae_are_those_of_diffusers(
    case: str, bundle: Callable[..., Path], checkpoint: Callable[[str], Path], swapped: Path
) -> None:
    ours, folder = (swapped, bundles.tiny_vae(0)) if case == SHAPE else (bundle(TINY, vae=str(PREVIEW)), PREVIEW)
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.5}
    profile = read_manifest(ours).profile
    wanted = their_pictures(checkpoint(case), load_tiny(folder), height=profile.height, width=profile.width, **how)
    assert wanted.std() > 0.02
    with Pipeline(ours, "cpu") as pipe:
        got = pipe(PROMPT, seed=3, output_type="np", **how).images
        assert np.abs(got - wanted).max() <= BOUND
        latents, previews, _ = looked_at(pipe)
        shown = load_tiny(bundles.tiny_vae(1) if case == SHAPE else PREVIEW)
        assert all(apart(p, decode(shown, each)) <= BOUND for each, p in zip(latents, previews, strict=True))


def test_the_manifest_knows_them(swapped: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """So that the same command does nothing, verify and bench find them, and another file exports again."""
    manifest = read_manifest(swapped)
    vae, previews = manifest.origin.vae, manifest.origin.preview_decoder
    assert vae is not None and previews is not None
    assert (vae.source, previews.source) == (str(bundles.tiny_vae(0)), str(bundles.tiny_vae(1)))
    assert vae.digest != previews.digest
    assert (manifest.spec.vae.scaling_factor, manifest.profile.preview_decoder) == (1.0, True)
    options = options_of(manifest)
    assert (options.vae, options.preview_decoder) == (vae.source, previews.source)
    assert not export_bundle(str(checkpoint(SHAPE)), swapped, options)
    assert isinstance(open_diffusers(checkpoint(SHAPE), manifest, torch.float32).vae, diffusers.AutoencoderTiny)

    verification = verify(swapped, str(checkpoint(SHAPE)))
    assert verification.failures == []
    assert {"vae_decoder", "preview_decoder"} <= {output.component for output in verification.outputs}


def test_another_folder_with_the_same_files_is_the_same(
    swapped: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """What changed since, or is gone, is not verified."""
    folder = shutil.copytree(bundles.tiny_vae(0), tmp_path / "vae")
    manifest = read_manifest(swapped)
    assert not export_bundle(str(checkpoint(SHAPE)), swapped, replace(options_of(manifest), vae=str(folder)))
    assert manifest.origin.vae is not None
    origin = replace(manifest.origin, vae=ModelOrigin(str(folder), manifest.origin.vae.digest), preview_decoder=None)
    moved = replace(manifest, origin=origin)
    assert open_diffusers(checkpoint(SHAPE), moved, torch.float32).vae.config.scaling_factor == 1.0
    save_tiny_vae(folder, seed=9)
    with pytest.raises(ArgumentError, match=r"^vae: expected in .* the files that the bundle was made from, found oth"):
        open_diffusers(checkpoint(SHAPE), moved, torch.float32)
    shutil.rmtree(folder)
    with pytest.raises(ArgumentError, match=r"^vae: expected the folder or hub name of a VAE, found .* is no folder"):
        open_diffusers(checkpoint(SHAPE), moved, torch.float32)


def test_memory() -> None:
    """With low_memory a preview decoder comes and goes with the denoiser."""
    names = ("text_encoder", "denoiser", "vae_decoder", "preview_decoder")
    needed = Budget(dict(zip(names, (1, 10, 2, 3), strict=True)), dict(zip(names, (0, 1, 6, 4), strict=True)), 100)
    assert needed.total(low_memory=True) == 100 + 10 + 3 + 4
    assert needed.total() == 100 + 16 + 6


def test_a_checkpoint_of_its_own(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """AutoencoderTiny in the checkpoint's own folder, as diffusers saves such a pipeline."""
    from koala_bundle.spec import Profile
    from koala_export.configs import read_spec
    from koala_export.modules import build_module
    from koala_export.source import open_source

    vae = load_tiny(bundles.tiny_vae(0))
    own = shutil.copytree(checkpoint(SHAPE), tmp_path / "own", ignore=shutil.ignore_patterns("vae"))
    vae.save_pretrained(own / "vae")
    index = own / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    opened = open_source(str(own), random_weights=False, precision="fp32")
    opened.check()
    spec = read_spec(opened.configs)
    assert (spec.vae.scaling_factor, spec.vae.scale_factor, spec.vae.force_upcast) == (1.0, 8, False)
    module = build_module("vae_decoder", opened, spec, Profile(64, 64, precision="fp32"))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert apart(module(latents).numpy(), decode(vae, latents.numpy())) <= BOUND


MISFITS = {
    "channels": ({"latent_channels": 16}, "expected {a} for latents of 4 channels, as the checkpoint's own, found"),
    "scale": (
        {"decoder_block_out_channels": (16,) * 3, "num_decoder_blocks": (1, 1, 0)},
        "expected {a} for pictures of 8 times the latents' height and width, as the checkpoint's own, found",
    ),
    "upsampling": ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor: expected 2"),
    "class": ({}, "expected {a} of class AutoencoderKL or AutoencoderTiny, found"),
    "no weights": ({}, "expected diffusion_pytorch_model.safetensors or "),
    "no folder": ({}, "expected the folder or hub name of {a}, found"),
}


@pytest.mark.parametrize("role", ["vae", "preview-decoder"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_misfits_are_refused(
    role: str, misfit: str, checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, said = MISFITS[misfit]
    folder = tmp_path / "nowhere" if misfit == "no folder" else save_tiny_vae(tmp_path / "other", **changes)
    if misfit == "class":
        config = folder / "config.json"
        config.write_text(config.read_text().replace("AutoencoderTiny", "AutoencoderDC"))
    if misfit == "no weights":
        (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert run_app(["export", str(checkpoint(SHAPE)), str(tmp_path / "new"), f"--{role}", str(folder)]) == 2
    said = said.format(a="a VAE" if role == "vae" else "a preview decoder")
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_its_encoder_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--vae", str(bundles.tiny_vae(0)), "--encoder")
    assert run_app(["export", str(checkpoint(SHAPE)), str(tmp_path / "new"), *options]) == 2
    assert (
        "error --encoder: expected a VAE of class AutoencoderKL, whose encoder gives a distribution, found Autoe"
        in (capsys.readouterr().err)
    )
