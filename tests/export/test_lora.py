"""LoRAs: what is read and added, held against diffusers' own loading and fusing, and what is refused with which counts.

Their pictures are in ``tests.system.test_lora``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from koala_bundle.errors import ArgumentError
from koala_cli.main import run_app
from koala_export.checkpoint import FolderCheckpoint
from koala_export.lora import Lora, check_fit, fit, read_loras
from koala_export.lora_names import MODELS_WITH_LORA
from koala_export.presets import PRESETS, configs
from koala_export.source import open_source
from koala_verify.lora_reference import add_lora
from tests.support.bundles import lora_files
from tests.support.diffusers import open_reference
from tests.support.loras import ATTENTION as LINEAR
from tests.support.loras import empty_models, in_kohya_format, in_peft_format, layers_of, sgm

SHAPE = "koala-1b-like"  # with a mid block
KINDS = {
    "peft": 160,
    "peft-alpha": 160,
    "old": 112,
    "kohya": 160,
    "kohya-sgm": 194,
    "locon": 194,
    "ranks": 160,
    "dora": 160,
    "kohya-dora": 124,
    "text": 18,
    "half": 160,
}
"""How many pairs a file of each kind has."""
BY_US = ("ranks", "kohya-dora")
"""Kinds that diffusers reads wrongly; it is handed their pairs in peft's format."""


@pytest.fixture(scope="module")
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(SHAPE)


@pytest.fixture(scope="module")
def pipeline(source: Path) -> Any:
    return open_reference(source)


@pytest.fixture
def reference(pipeline: Any) -> Iterator[Any]:
    """diffusers' own pipeline, with the checkpoint's weights again after the test."""
    before = {name: copy.deepcopy(getattr(pipeline, name).state_dict()) for name in MODELS_WITH_LORA}
    yield pipeline
    for name, state in before.items():
        getattr(pipeline, name).load_state_dict(state)


def weights(models: Any) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name in MODELS_WITH_LORA for key, value in models(name).state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_added_as_diffusers_adds_it(source: Path, reference: Any, kind: str) -> None:
    file = lora_files(SHAPE)[kind]
    opened = FolderCheckpoint(source, "fp32", loras=read_loras([f"{file}:-0.5"]))
    opened.check()
    ours = weights(lambda name: opened.load(name, torch.float32))
    assert len(opened.loras[0].pairs) == KINDS[kind]
    before = {name: value.clone() for name, value in weights(lambda name: getattr(reference, name)).items()}
    if kind in BY_US:
        add_lora(reference, opened.loras[0])
    else:
        reference.load_lora_weights(str(file))
        reference.fuse_lora(lora_scale=-0.5)
        reference.unload_lora_weights()
    wanted = weights(lambda name: getattr(reference, name))
    assert ours.keys() == wanted.keys()
    moved = [name for name, value in wanted.items() if not torch.equal(value, before[name])]
    assert len(moved) == KINDS[kind]
    for name, value in wanted.items():
        assert (ours[name] - value).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), name


def test_the_alpha_of_each_layer_counts(source: Path) -> None:
    """The kind that diffusers reads wrongly, by the formula: weight + alpha / rank * up @ down."""
    file = lora_files(SHAPE)["ranks"]
    state = load_file(file)
    plain, opened = (FolderCheckpoint(source, "fp32", loras=read_loras(each)) for each in ([], [str(file)]))
    for model, start in (("unet", "lora_unet"), ("text_encoder_2", "lora_te2")):
        before, after = (each.load(model, torch.float32) for each in (plain, opened))
        ranks = set()
        for name, module in layers_of({model: before}, LINEAR).items():
            flat = f"{start}_{name.partition('.')[2].replace('.', '_')}"
            down, up, alpha = (state[f"{flat}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
            ranks.add(len(down))
            own = name.partition(".")[2]
            own = own if own in dict(after.named_modules()) else own.removeprefix("text_model.")
            torch.testing.assert_close(after.get_submodule(own).weight, module.weight + alpha / len(down) * up @ down)
        assert ranks == {1, 2, 3, 4, 5}


def test_scales_and_order(source: Path) -> None:
    """0 leaves the weights as they are, two files add up, and float16 is rounded once."""
    first, second = (lora_files(SHAPE)[kind] for kind in ("kohya", "text"))

    def load(*given: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        opened = FolderCheckpoint(source, "fp32", loras=read_loras(given))
        return dict(opened.load("text_encoder", dtype).state_dict())

    plain, none = load(), load(f"{first}:0")
    assert all(torch.equal(none[name], value) for name, value in plain.items())
    one, other, both = load(f"{first}:0.7"), load(f"{second}"), load(f"{first}:0.7", f"{second}:1")
    for name, value in both.items():
        torch.testing.assert_close(value, one[name] + other[name] - plain[name])
    half = load(f"{first}:0.7", dtype=torch.float16)
    assert all(torch.equal(half[name], value.half()) for name, value in one.items())


def test_they_are_part_of_the_origin(source: Path) -> None:
    file = lora_files(SHAPE)["text"]
    options: dict[str, Any] = {"random_weights": False, "precision": "fp32"}
    opened = open_source(str(source), loras=[f"{file}:0.25"], **options)
    (entry,) = (lora.entry for lora in opened.loras)
    assert (entry.name, entry.scale, len(entry.sha256)) == ("text.safetensors", 0.25, 64)
    assert opened.digest() == open_source(str(source), **options).digest()
    with pytest.raises(ArgumentError, match="loras: expected none with random weights"):
        open_source("koala-700m", random_weights=True, precision="fp16", loras=["a.safetensors"])


def empty_lora(state: dict[str, Tensor], folder: Path) -> Lora:
    """Read a file of these tensors; those on the meta device become zeros."""
    path = folder / "sdxl.safetensors"
    save_file({name: torch.zeros(tensor.shape) for name, tensor in state.items()}, path)
    return read_loras([str(path)])[0]


@pytest.fixture(scope="module")
def sdxl() -> dict[str, Any]:
    """The 722 linear layers that a LoRA of SDXL's U-Net has, each as a pair of rank 1, by name."""
    layers = layers_of(empty_models(configs(PRESETS["sdxl-base"]), ["unet"]), LINEAR)
    return {name: (torch.zeros(1, m.in_features), torch.zeros(m.out_features, 1)) for name, m in layers.items()}


@pytest.mark.parametrize(
    ("preset", "named", "counted"),
    [("koala-700m", 222, 126), ("koala-1b", 314, 208), ("ssd-1b", 360, 360), ("ssd-vega", 170, 170)],
)
def test_what_was_trained_for_sdxl_is_refused(
    sdxl: dict[str, Any], tmp_path: Path, preset: str, named: int, counted: int
) -> None:
    """``counted`` are found by names that count layers. diffusers' conversion finds as many for KOALA."""
    found = dict(configs(PRESETS[preset]))
    assert len(sdxl) == 722
    for state, count in ((in_peft_format(sdxl), named), (in_kohya_format(sdxl, sgm(2)), counted)):
        with pytest.raises(ArgumentError) as caught:
            check_fit(empty_lora(state, tmp_path), found)
        said = str(caught.value)
        assert "expected a layer of this checkpoint for each of its 722 pairs of matrices, " in said
        assert f"found one for {count} of them (" in said
        assert "those for SDXL do not fit KOALA, which has fewer blocks" in said


def test_sdxl_takes_its_own(sdxl: dict[str, Any], tmp_path: Path) -> None:
    for state in (in_peft_format(sdxl), in_kohya_format(sdxl), in_kohya_format(sdxl, sgm(2))):
        check_fit(empty_lora(state, tmp_path), dict(configs(PRESETS["sdxl-base"])))


def test_names_that_mean_another_layer_in_sdxl_are_refused(sdxl: dict[str, Any], tmp_path: Path) -> None:
    """output_blocks.3.1 is the first of SDXL's up_blocks.1 and the second of KOALA's; shapes and depth are the same."""
    some = {name: pair for name, pair in sdxl.items() if ".up_blocks.1.attentions.0." in name}
    lora = empty_lora(in_kohya_format(some, sgm(2)), tmp_path)
    found = dict(configs(PRESETS["koala-700m"]))
    assert fit(lora.pairs, empty_models(found), found).count == len(some) == 22
    with pytest.raises(ArgumentError, match="a U-Net of 1 layers per block, found 22 pairs that fit SDXL, such as "):
        check_fit(lora, found)
    own = layers_of(empty_models(found, ["unet"]), LINEAR)
    pairs = {name: (torch.zeros(1, m.in_features), torch.zeros(m.out_features, 1)) for name, m in own.items()}
    check_fit(empty_lora(in_kohya_format(pairs, sgm(1)), tmp_path), found)


UP, DOWN = torch.ones(32, 2), torch.ones(2, 32)
LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
PAIR = {f"{LAYER}.lora_A.weight": DOWN, f"{LAYER}.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        (
            "no.safetensors",
            None,
            "expected a safetensors file, or one on the hub as OWNER/NAME/FILE.safetensors, found ",
        ),
        ("a.pt", {}, "expected a safetensors file, found a .pt file, which may be a pickle; convert it once with "),
        ("a.safetensors", {}, "expected a LoRA in the format of diffusers, peft or kohya, found no tensors; "),
        (
            "a.safetensors",
            {"model.weight": UP, "model.bias": UP},
            "expected pairs of matrices of a LoRA in the format of diffusers, peft or kohya, found 2 tensors, among "
            "them model.bias; pass another file.",
        ),
        ("a.safetensors", {"lora_unet_a.hada_w1_a": UP}, "expected a LoRA, LoCon or DoRA in the format of diffusers, "),
        ("a.safetensors", {"lora_unet_a.hada_w1_a": UP}, "found LoHa (lora_unet_a.hada_w1_a); merge it into the "),
        ("a.safetensors", {"lora_unet_a.lokr_w1": UP}, "found LoKr (lora_unet_a.lokr_w1); "),
        ("a.safetensors", {**PAIR, "lora_unet_a.lora_mid.weight": UP}, "found a LoCon of three matrices (lora_unet_a."),
        ("a.safetensors", {**PAIR, "bundle_emb.fog.clip_l": UP}, "found learned words inside (bundle_emb.fog.clip_l)"),
        ("a.safetensors", {**PAIR, f"{LAYER}.lora_B.bias": UP}, "found biases ("),
        (
            "a.safetensors",
            {f"{LAYER}.lora_A.weight": DOWN},
            f"expected two matrices per layer, found only down of {LAYER}",
        ),
        (
            "a.safetensors",
            PAIR | {f"{LAYER}.lora_B.weight": torch.ones(32, 3)},
            "expected two matrices of one rank per ",
        ),
        ("a.safetensors", PAIR | {f"{LAYER}.lora_B.weight": UP * torch.nan}, "expected finite numbers, found NaN, "),
        ("a.safetensors", PAIR | {f"{LAYER}.alpha": torch.tensor([1.0, 2.0])}, "expected one finite alpha per layer, "),
        ("a.safetensors", PAIR | {f"{LAYER}.dora_scale": torch.ones(1, 32, 2)}, "expected one magnitude per output, "),
        (
            "a.safetensors",
            {k.replace("q_proj", "p_proj"): v for k, v in PAIR.items()},
            "found one for 0 of them (1 name ",
        ),
        (
            "a.safetensors",
            PAIR | {f"{LAYER}.lora_B.weight": torch.ones(40, 2)},
            f"0 of them (1 have another shape, such as {LAYER} (40 x 2 by 2 x 32, for weights of 32 x 32))",
        ),
        (
            "a.safetensors",
            PAIR | {k.replace("text_model.", ""): v for k, v in PAIR.items()},
            "found one for 1 of them (1 have another shape, such as ",
        ),
    ],
)
def test_what_is_refused(source: Path, tmp_path: Path, name: str, tensors: dict[str, Tensor] | None, said: str) -> None:
    file = tmp_path / name
    if tensors is not None:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, file)
    with pytest.raises(ArgumentError) as caught:
        open_source(str(source), random_weights=False, precision="fp32", loras=[str(file)]).check()
    assert str(caught.value).startswith(f"lora {file}: expected ")
    assert said in str(caught.value)


def test_half_a_file_and_a_huge_scale(source: Path, tmp_path: Path) -> None:
    whole = lora_files(SHAPE)["kohya"]
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ArgumentError, match="expected a whole safetensors file, found one that cannot be read"):
        read_loras([str(cut)])
    for scale in ("nan", "inf"):
        with pytest.raises(ArgumentError, match="expected a finite scale"):
            read_loras([f"{whole}:{scale}"])
    with pytest.raises(ArgumentError, match=r"expected a safetensors file.* found no file"):
        read_loras([f"{whole}:strong"])
    opened = FolderCheckpoint(source, "fp16", loras=read_loras([f"{whole}:1e7"]))
    with pytest.raises(ArgumentError, match=r"expected finite weights in float16 at scale 1e\+07, found NaN or "):
        opened.load("unet", torch.float16)


def test_peft_says_how_much(tmp_path: Path) -> None:
    """alpha / rank, rsLoRA's alpha / sqrt(rank), and an alpha for some layers, from what diffusers saves of peft."""
    other = LAYER.replace("q_proj", "k_proj")
    tensors = PAIR | {key.replace("q_proj", "k_proj"): value for key, value in PAIR.items()}
    start = "text_encoder."
    settings = {f"{start}lora_alpha": 8, f"{start}alpha_pattern": {"^" + other.removeprefix(start): 3}}
    for rslora, wanted in ((False, {LAYER: 4.0, other: 1.5}), (True, {LAYER: 8 / 2**0.5, other: 3 / 2**0.5})):
        header = {"lora_adapter_metadata": json.dumps(settings | {f"{start}use_rslora": rslora})}
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "a.safetensors", header)
        (lora,) = read_loras([str(tmp_path / "a.safetensors")])
        assert {pair.layer: pair.scaling for pair in lora.pairs} == pytest.approx(wanted)


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    local = lora_files(SHAPE)["text"]
    asked = []

    def download(*names: str) -> str:
        asked.append(names)
        if names[0] == "nobody/nothing":
            raise OSError("offline")
        return str(local)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    (lora,) = read_loras(["someone/a-style/loras/outline.safetensors:0.8"])
    assert (lora.file, lora.scale, asked) == (local, 0.8, [("someone/a-style", "loras/outline.safetensors")])
    with pytest.raises(ArgumentError, match=r"lora nobody/nothing/a\.safetensors: expected a file on the hub, found "):
        read_loras(["nobody/nothing/a.safetensors"])


def test_the_command_line_says_it(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}, path)
    assert run_app(["export", str(source), str(tmp_path / "new"), "--lora", f"{path}:0.5"]) == 2
    assert "found one for 0 of them (1 name no layer, such as lora_unet_x)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
