"""What was found in bundles and pictures of strangers, each by its name: refused in one sentence, nothing touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from koala_bundle.clip_tokenizer import check_tokenizer
from koala_bundle.codec import parse_json
from koala_bundle.errors import ArgumentError, BundleError, TargetError
from koala_bundle.files import file_entry, write_atomic, write_sealed
from koala_bundle.places import inside
from koala_cli.main import run_app
from koala_runtime.pictures import open_picture
from koala_runtime.selection import open_engines
from tests.support.copies import copy_bundle


@pytest.fixture
def own(tmp_path: Path, bundle: Callable[..., Path]) -> Path:
    return copy_bundle(bundle("koala-tiny"), tmp_path / "bundle")


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_bytes())
    change(data)
    path.unlink()
    write_sealed(path, data)


@pytest.mark.parametrize("name", ["nul", "a/CON.txt", "a\0b", "a.", "a b", "./a", "a//b", "", ".hidden", "x" * 300])
def test_names_that_not_every_system_takes(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="found a name that not every system takes"):
        inside(tmp_path, name, "fix it")


@pytest.mark.parametrize("place", ["manifest.json", "tokenizer", "engines/cpu", "engines/cpu/denoiser.onnx.data"])
def test_a_link_that_leads_out(own: Path, place: str) -> None:
    (own / place).rename(own.parent / "elsewhere")
    (own / place).symlink_to(own.parent / "elsewhere")
    with pytest.raises(BundleError, match="expected a file inside the bundle, found a link to"):
        open_engines(own, "cpu")


def test_engines_are_not_built_behind_a_link_that_leads_out(own: Path) -> None:
    precious = own.parent / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    shutil.rmtree(own / "engines/cpu")
    (own / "engines/cpu").symlink_to(precious)
    assert run_app(["engines", str(own), "--target", "cpu"]) == 2
    assert [path.name for path in own.parent.iterdir() if path.name != "bundle"] == ["precious"]
    assert (precious / "thesis.txt").read_text() == "mine"


def test_a_link_in_place_of_a_partial_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    write_atomic(tmp_path / "out", b"new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("location", ["../../../secret", "/etc/passwd", "vae_decoder.onnx.data", "*/_ORT_MEM_ADDR_/*"])
def test_a_plan_whose_weights_are_elsewhere(own: Path, location: str) -> None:
    path = own / "engines/cpu/text_encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.unlink()
    path.write_bytes(model.SerializeToString())
    entry = file_entry(path)
    seal = {"sha256": entry.sha256, "size": entry.size}
    rewrite(own / "engines/cpu/engine.json", lambda data: data["files"].update({path.name: seal}))
    with pytest.raises(BundleError, match="expected tensors in files with a digest, found some in"):
        open_engines(own, "cpu")


def test_plans_of_fewer_components(own: Path) -> None:
    record = own / "engines/cpu/engine.json"
    rewrite(record, lambda data: data["plans"].pop("vae_decoder"))
    with pytest.raises(TargetError, match="found plans built from other ONNX files"):
        open_engines(own, "cpu")
    rewrite(record, lambda data: data["plans"]["denoiser"].update(files=[]))
    with pytest.raises(BundleError, match="expected a file of every component, found none of one"):
        open_engines(own, "cpu")


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a component's name is a path": (lambda m: m["components"][0].update(name="../x"), "components: expected"),
    "a size without end": (lambda m: m["profile"].update(batch=2**20), "profile: expected at most 67,108,864 pixels"),
    "a scale of none": (lambda m: m["spec"]["vae"].update(scale_factor=0), "scale_factor: expected 1 to"),
    "another tensor": (lambda m: m["components"][0]["inputs"].pop(), "the tensors that follow from spec and profile"),
    "an unknown scheduler": (lambda m: m["spec"]["scheduler"].update(class_name="X"), "expected a known class"),
    "a number beyond 64 bits": (lambda m: m["profile"].update(height=10**30), "a whole number of 64 bits"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_manifest_whose_parts_do_not_fit(case: str, own: Path) -> None:
    change, words = CHANGES[case]
    rewrite(own / "manifest.json", change)
    with pytest.raises(BundleError, match=words):
        open_engines(own, "cpu")


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[-Infinity]", b"[" * 100_000, b"\xff"])
def test_json_of_more_than_one_meaning(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


TOKENIZERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a regular expression that never ends": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "(a+)+$"}),
        "the regular expression",
    ),
    "doubled two hundred times": (
        lambda t: t["pre_tokenizer"]["pretokenizers"].extend(t["pre_tokenizer"]["pretokenizers"][1:] * 200),
        "with two of ByteLevel",
    ),
    "a padding without end": (lambda t: t["padding"].update(strategy={"Fixed": 10**12}), "chunks of 1000000000000"),
    "a prefix that ends in a panic": (
        lambda t: t["model"].update(continuing_subword_prefix="##"),
        "a model with continuing_subword_prefix",
    ),
    "another model": (lambda t: t["model"].update(type="Unigram"), "a model of kind 'Unigram'"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_that_explode(case: str, own: Path) -> None:
    change, words = TOKENIZERS[case]
    path = own / "tokenizer/tokenizer.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.unlink()
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=words):
        check_tokenizer(path, "fix it")


def test_a_picture_of_too_many_pixels_and_a_program(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    with pytest.raises(ArgumentError, match=r"expected at most 67,108,864 pixels, found 10000 x 10000 pixels"):
        open_picture(tmp_path / "large.png", "--image", "pass another")
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ArgumentError, match="a file of another kind"):
        open_picture(tmp_path / "x.png", "--image", "pass another")
