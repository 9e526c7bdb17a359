"""``koala run --like``: the recipe in a picture draws it again, byte for byte, or says why it cannot."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from rich.console import Console

import koala_cli.commands.run
import koala_cli.screen
from koala_bundle.codec import to_json
from koala_cli.main import run_app
from koala_runtime import Pipeline, Recipe, read_recipe, to_png
from koala_runtime.recipe import A1111_KEY, KEY

SHAPE = "koala-700m-like"
PROMPT = "a koala, 考拉"
OPTIONS = ("--negative-prompt", "fog", "--steps", "3", "--guidance-scale", "4.25", "--seed", "7", "--target", "cpu")


@pytest.fixture(scope="module")
def picture(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("like") / "koala.png"
    assert run_app(["run", str(bundle(SHAPE)), PROMPT, *OPTIONS, "--output", str(path)]) == 0
    return path


def draw_like(bundle: Path, picture: Path, output: Path, *options: str) -> bytes:
    assert run_app(["run", str(bundle), "--like", str(picture), "--output", str(output), *options]) == 0
    return output.read_bytes()


def with_text(picture: Path, path: Path, **text: str) -> Path:
    """Save the pixels of ``picture`` with other text."""
    info = PngImagePlugin.PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    with Image.open(picture) as image:
        image.save(path, pnginfo=info)
    return path


def with_recipe(picture: Path, path: Path, **changes: Any) -> Path:
    return with_text(picture, path, **{KEY: json.dumps(to_json(read_recipe(picture)) | changes)})


def test_a_picture_is_drawn_again_byte_for_byte(bundle: Callable[..., Path], picture: Path, tmp_path: Path) -> None:
    assert draw_like(bundle(SHAPE), picture, tmp_path / "again.png", "--target", "cpu") == picture.read_bytes()


def test_a_recipe_does_not_command_the_terminal(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = with_recipe(picture, tmp_path / "changed.png", prompt="a\x1b]0;koala\x07\x9bm b")
    assert run_app(["inspect", str(changed)]) == 0
    shown = capsys.readouterr().out
    assert "a\\x1b]0;koala\\x07\\x9bm b" in shown and "\x1b" not in shown


def test_the_recipe_is_whole(bundle: Callable[..., Path], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(picture) as image:
        stored, parameters = json.loads(image.text[KEY]), image.text[A1111_KEY]  # type: ignore[attr-defined]
    with Pipeline(bundle(SHAPE), "cpu") as pipeline:
        digest = pipeline.digest
    assert stored["bundle"] == digest
    lines = parameters.splitlines()
    assert lines[:2] == [PROMPT, "Negative prompt: fog"]
    assert lines[2].startswith(
        "Steps: 3, Sampler: Euler, CFG scale: 4.25, Seed: 7, Size: 96x64, "
        f"Model hash: {digest[:10]}, Version: koala-trt"
    )
    assert run_app(["inspect", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == stored == to_json(read_recipe(picture))
    assert run_app(["inspect", str(picture)]) == 0
    shown = capsys.readouterr().out
    for word in (PROMPT, "fog", "7", "3 steps, guidance 4.25, Euler", "96 x 64 px", "1 of 1", "cpu, koala-trt"):
        assert word in shown


@pytest.mark.parametrize("index", [0, 2])
def test_one_of_several_pictures(bundle: Callable[..., Path], tmp_path: Path, index: int) -> None:
    """Of a call from Python with other prompts, sizes and no negative prompt."""
    with Pipeline(bundle(SHAPE), "cpu") as pipeline:
        result = pipeline(
            ["a cat", "a dog", "[red] koala"],
            num_inference_steps=2,
            seed=-3,
            original_size=(512, 768),
            crops_coords_top_left=(8, 16),
            target_size=(64, 48),
        )
    assert [recipe.index for recipe in result.recipes] == [0, 1, 2]
    path = tmp_path / "one.png"
    path.write_bytes(to_png(result.images[index], result.recipes[index]))
    assert draw_like(bundle(SHAPE), path, tmp_path / "again.png", "--target", "cpu") == path.read_bytes()


def test_one_of_a_batch(bundle: Callable[..., Path], tmp_path: Path) -> None:
    """A picture is drawn again in the row of the batch where it was, beside copies of itself."""
    path = bundle(SHAPE, batch=2)
    with Pipeline(path, "cpu") as pipeline:
        result = pipeline(["a cat", "a dog", "a koala"], negative_prompt="fog", num_inference_steps=2, seed=5)
    for image, recipe in zip(result.images, result.recipes, strict=True):
        one = tmp_path / f"{recipe.index}.png"
        one.write_bytes(to_png(image, recipe))
        assert draw_like(path, one, tmp_path / "again.png", "--target", "cpu") == one.read_bytes()


def test_options_beside_a_picture_make_a_variation(bundle: Callable[..., Path], picture: Path, tmp_path: Path) -> None:
    draw_like(bundle(SHAPE), picture, tmp_path / "other.png", "--seed", "8", "--steps", "2", "--target", "cpu")
    recipe = read_recipe(picture)
    assert read_recipe(tmp_path / "other.png") == replace(recipe, seed=8, num_inference_steps=2)
    with Pipeline(bundle(SHAPE), "cpu") as pipeline:
        same = pipeline(PROMPT, negative_prompt="fog", num_inference_steps=2, guidance_scale=4.25, seed=8).images[0]
    with Image.open(tmp_path / "other.png") as drawn:
        assert drawn.tobytes() == same.tobytes()


def test_another_target_is_noted(
    bundle: Callable[..., Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    draw_like(bundle(SHAPE), picture, tmp_path / "again.png", "--target", "simulated")
    said = capsys.readouterr().err
    assert "the picture was drawn on target cpu and now on simulated" in said
    assert "--target cpu repeats it exactly" in said
    assert read_recipe(tmp_path / "again.png").target == "simulated"


def no_recipe(picture: Path, path: Path) -> Path:
    return with_text(picture, path, prompt="a cat")


CASES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no file": (lambda picture, path: None, "{like}: expected a picture, found no file; {fix}."),
    "no picture": (
        lambda picture, path: path.write_text("koala"),
        "{like}: expected a picture, found a file of another kind; {fix}.",
    ),
    "cut short": (
        lambda picture, path: path.write_bytes(picture.read_bytes()[:-3000]),
        "{like}: expected a picture, found a file that cannot be read (image file is truncated*); {fix}.",
    ),
    "no recipe": (no_recipe, "{like}: expected a picture with a recipe, found none in it; {fix}."),
    "not JSON": (
        lambda picture, path: with_text(picture, path, **{KEY: "{"}),
        "{like}: expected a recipe that koala-trt reads, found a damaged one (Expecting property name*); {fix}.",
    ),
    "a field of another kind": (
        lambda picture, path: with_recipe(picture, path, seed="seven"),
        "{like}: expected a recipe that koala-trt reads, found a damaged one (seed: expected int, found str 'seven'); "
        "{fix}.",
    ),
    "no such picture of the call": (
        lambda picture, path: with_recipe(picture, path, index=1),
        "{like}: expected a recipe that koala-trt reads, found a damaged one (index: expected 0 to 0, found 1); {fix}.",
    ),
    "newer schema": (
        lambda picture, path: with_recipe(picture, path, schema_version=5),
        "{like}: schema_version: expected 4, found 5; upgrade koala-trt, which is older than the picture.",
    ),
    "unknown schema": (
        lambda picture, path: with_recipe(picture, path, schema_version="one"),
        "{like}: expected a recipe that koala-trt reads, found a damaged one (schema_version: expected 4, found one); "
        "{fix}.",
    ),
    "another bundle": (
        lambda picture, path: with_recipe(picture, path, bundle="0123456789abcdef" * 4),
        "{like}: bundle: expected {digest}, the digest of {bundle}, found 0123456789ab; pass the bundle that drew the "
        "picture, or export it again from the same checkpoint with the same options and versions.",
    ),
    "drawn from latents": (
        lambda picture, path: with_recipe(picture, path, seed=None),
        "{like}: seed: expected a seed, found none, because the picture was drawn from latents; pass the same latents "
        "to the pipeline again, or another seed for a variation.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_drawn_again(
    case: str, bundle: Callable[..., Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, before engines are loaded: this bundle has none."""
    prepare, said = CASES[case]
    like, output, copy = tmp_path / "like.png", tmp_path / "new.png", tmp_path / "bundle"
    prepare(picture, like)
    copy.mkdir()
    (copy / "manifest.json").write_bytes((bundle(SHAPE) / "manifest.json").read_bytes())
    capsys.readouterr()
    assert run_app(["run", str(copy), "--like", str(like), "--output", str(output)]) == 2
    parts = {"like": like, "bundle": copy, "digest": read_recipe(picture).bundle[:12]}
    wanted = said.format(**parts, fix="pass a PNG file that koala-trt wrote, unchanged")
    pattern = re.escape(f"error {wanted}").replace(r"\*", ".*")
    assert re.fullmatch(pattern, capsys.readouterr().err.strip())
    assert not output.exists()


def test_a_prompt_beside_a_picture(
    bundle: Callable[..., Path], picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["run", str(bundle(SHAPE)), "a cat", "--like", str(picture)]) == 2
    assert "PROMPT: expected none beside --like, whose picture has its own, found 'a cat'" in capsys.readouterr().err


def test_a_variation_does_not_replace_its_picture(
    bundle: Callable[..., Path], picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture.read_bytes()
    command = ["run", str(bundle(SHAPE)), "--like", str(picture), "--output", str(picture)]
    assert run_app([*command, "--seed", "8"]) == 2
    assert "--output: expected another file than the picture of --like" in capsys.readouterr().err
    assert run_app(command) == 0
    assert picture.read_bytes() == before


def test_a_recipe_from_latents_says_so(bundle: Callable[..., Path]) -> None:
    with Pipeline(bundle(SHAPE), "cpu") as pipeline:
        latents = np.zeros((1, 4, 8, 12), np.float32)
        recipe: Recipe = pipeline("a cat", latents=latents, num_inference_steps=1).recipes[0]
    assert recipe.seed is None
    assert "Seed" not in recipe.parameters


@pytest.mark.parametrize("target", ["cpu", "simulated"])
def test_progress_follows_the_steps_on_every_target(
    bundle: Callable[..., Path], tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system=None, width=100, markup=False)
    for module in (koala_cli.screen, koala_cli.commands.run):
        monkeypatch.setattr(module, "stderr", terminal)
    updates: list[tuple[str, float]] = []
    draw = koala_cli.commands.run._draw_stepwise

    def watched(pipeline: Any, call: dict[str, Any], update: Any) -> Any:
        return draw(pipeline, call, lambda what, done: updates.append((what, done)))

    monkeypatch.setattr(koala_cli.commands.run, "_draw_stepwise", watched)
    output = tmp_path / "koala.png"
    command = ["run", str(bundle(SHAPE)), "a koala", "--steps", "2", "--seed", "1", "--target", target]
    assert run_app([*command, "--output", str(output)]) == 0
    assert updates == [("step 1 of 2", 0.5), ("step 2 of 2", 1.0)]
    assert f"{target}: seed 1, 2 steps" in screen.getvalue()
