"""``koala run`` with samplers, and with pictures to begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from koala_cli.main import run_app
from koala_runtime import Pipeline, read_recipe

SHAPE = "koala-700m-like"


@pytest.fixture(scope="module")
def painted(bundle: Callable[..., Path]) -> Path:
    return bundle(SHAPE, encoder=True)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a picture and a mask."""
    levels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "in.png")
    Image.fromarray((levels[..., 0] > 99).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_and_a_mask(painted: Path, files: Path) -> None:
    options = ["--image", "in.png", "--mask", "mask.png", "--strength", "0.6", "--seed", "1", "--scheduler", "euler_a"]
    assert run_app(["run", str(painted), "a koala", *options]) == 0
    call = {"image": Image.open("in.png"), "mask_image": Image.open("mask.png"), "strength": 0.6}
    with Pipeline(painted) as pipe:
        wanted = pipe("a koala", seed=1, scheduler="euler_a", **call).images[0]  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(Image.open("koala.png")), np.asarray(wanted))


def test_a_sampler_and_a_variation_with_another(painted: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", str(painted), "a koala", "--scheduler", "DPM++ 2M Karras", "--seed", "1"]) == 0
    assert run_app(["run", str(painted), "--like", "koala.png", "--output", "again.png"]) == 0
    assert (files / "koala.png").read_bytes() == (files / "again.png").read_bytes()
    again = ["--like", "koala.png", "--scheduler", "ddim", "--eta", "0.5", "--steps", "3", "--output", "other.png"]
    assert run_app(["run", str(painted), *again]) == 0
    recipe = read_recipe(files / "other.png")
    assert (recipe.scheduler.class_name, recipe.eta, recipe.num_inference_steps) == ("DDIMScheduler", 0.5, 3)
    capsys.readouterr()
    assert run_app(["inspect", "koala.png"]) == 0
    assert "DPM++ 2M Karras" in capsys.readouterr().out
    assert "Sampler: DPM++ 2M Karras" in Image.open("koala.png").text["parameters"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "none.png"], "error --image none.png: expected a picture, found no file; pass a picture."),
        (["--image", "text.png"], "error --image text.png: expected a picture, found a file of another kind; pass a"),
        (
            ["--mask", "mask.png"],
            "error --mask: expected an image, too, found none; pass image, or leave this out.",
        ),
        (["--scheduler", "fast"], "error --scheduler: expected a class of diffusers, or euler, euler_a, heun,"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    painted: Path, files: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run_app(["run", str(painted), "a koala", *options]) == 2
    assert " ".join(capsys.readouterr().err.split()).startswith(said)
    assert not (files / "koala.png").exists()


def test_a_picture_is_not_drawn_like_another(painted: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = ["run", str(painted), "a koala", "--image", "in.png", "--strength", "0.6", "--seed", "1"]
    assert run_app(draw) == 0
    assert run_app(["run", str(painted), "--like", "koala.png", "--output", "again.png"]) == 2
    assert run_app(["run", str(painted), "--like", "koala.png", "--image", "in.png", "--output", "again.png"]) == 2
    first, second = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert first.startswith("error koala.png: image: expected a picture that began with noise, found one that began")
    assert second.startswith(
        "error --image: expected none beside --like, which draws from noise, found --like koala.png;"
    )
