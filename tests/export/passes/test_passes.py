"""With and without each graph pass a bundle draws the same (``rescale``, a module pass, has a test of its own).

A bundle is traced once without passes; what they make of its graphs becomes further bundles.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from koala_bundle.files import file_entry, write_sealed
from koala_bundle.manifest import ComponentEntry, read_manifest
from koala_bundle.spec import PASS_NAMES
from koala_bundle.targets import CPU
from koala_bundle.tensors import components
from koala_cli.work import hoisted_line
from koala_engines.build import build_engines
from koala_export.gate import check_component
from koala_export.module_passes import MODULE_PASSES
from koala_export.modules import build_module
from koala_export.passes import PASSES, run_passes
from koala_export.passes.base import Part, Pass, Result, same_interface, static_shapes
from koala_export.passes.chunk import chunk_attention
from koala_export.source import open_source
from koala_export.trace import save
from koala_runtime import Pipeline
from tests.support.checkpoints import SHAPES

QUICK = "koala-700m-like"
NAMES = [n if n == QUICK else pytest.param(n, marks=pytest.mark.full) for n in (*SHAPES, "koala-tiny")]
SIZE = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": 2.0}
GRAPH_PASSES = tuple(each.name for each in PASSES)
EACH = [*((name,) for name in GRAPH_PASSES), GRAPH_PASSES]


@pytest.fixture(scope="module", params=NAMES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(shape: str, bundle: Callable[..., Path]) -> Path:
    """A float32 bundle without any pass, and its cpu engines."""
    return bundle(shape, **SIZE, precision="fp32", without=PASS_NAMES)


def compiled(plain: Path, passes: tuple[str, ...], folder: Path) -> Path:
    """Return the bundle that an export with ``passes`` would have made, with cpu engines.

    The VAE's attention is too small here to be worth chunks; it is made to take them.
    """
    bundle = shutil.copytree(plain, folder / "-".join(passes), ignore=shutil.ignore_patterns("onnx", "engines"))
    manifest = read_manifest(plain)
    entries, files = [], {name: entry for name, entry in manifest.files.items() if not name.startswith("onnx/")}
    (bundle / "onnx").mkdir()
    for component in components(manifest.spec, manifest.profile):
        model = ir.load(plain / "onnx" / f"{component.name}.onnx")
        if "chunk" in passes and component.name == "vae_decoder":
            assert chunk_attention(model, scratch=2**14, widest_fused=0) == 1
        parts, _ = run_passes(Part(component, model), passes, lambda _: None)
        for part, counts in parts:
            made, paths = part.component, save(part.model, part.component, bundle / "onnx")
            names = tuple(f"onnx/{path.name}" for path in paths)
            entries.append(ComponentEntry(made.name, made.inputs, made.outputs, made.steps, names, counts))
            files |= {name: file_entry(path) for name, path in zip(names, paths, strict=True)}
    manifest = replace(manifest, passes=passes, components=tuple(entries), files=files)
    write_sealed(bundle / "manifest.json", manifest)
    build_engines(bundle, CPU)
    return bundle


def drawn(bundle: Path, steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the picture, [1, H, W, 3] in 0..1, and the latents that it was decoded from."""
    latents: list[NDArray[np.float32]] = []

    def watch(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"])
        return {}

    settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.5, "output_type": "np"}
    with Pipeline(bundle) as pipe:
        settings |= {"negative_prompt": "a blue square", "seed": 3}
        images = pipe("a small red circle", callback_on_step_end=watch, **settings).images
    return images, latents[-1]


@pytest.mark.parametrize("passes", EACH, ids="+".join)
def test_pictures_stay_the_same(plain: Path, passes: tuple[str, ...], tmp_path: Path) -> None:
    """Orders of float32 sums differ by 1e-7 in each; 1e-5 of the largest value after a few steps is the bound."""
    other = compiled(plain, passes, tmp_path)
    for steps in (1, 4, 40):
        (wanted, before), (got, after) = drawn(plain, steps), drawn(other, steps)
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
        assert np.abs(got - wanted).max() <= 1.01 / 255  # uint8, rounded the other way


def test_each_pass_is_counted_and_export_and_inspect_agree(plain: Path) -> None:
    manifest, said = read_manifest(plain), list[str]()
    component = next(c for c in components(manifest.spec, manifest.profile) if c.name == "denoiser")
    part = Part(component, ir.load(plain / "onnx" / "denoiser.onnx"))
    parts, (first, second) = run_passes(part, GRAPH_PASSES, said.append)
    assert (first.name, second.name) == ("sequence_major", "hoist")
    assert first.before == manifest.traced["denoiser"]
    assert first.after == {"denoiser": second.before}
    assert first.before.nodes > second.before.nodes, "this pass removes nodes, too; they did not leave the loop"
    assert second.after == {part.component.name: counts for part, counts in parts}

    exported = re.fullmatch(r"denoiser: (\d+) of (\d+) nodes left the loop, over (\d+) tensors", said[-1])
    assert exported is not None
    assert int(exported[2]) == second.before.nodes
    entries = [
        ComponentEntry(p.component.name, p.component.inputs, p.component.outputs, p.component.steps) for p, _ in parts
    ]
    inspected = hoisted_line(replace(manifest, changes=(first, second), components=tuple(entries)))
    assert inspected is not None
    assert inspected.startswith(f"hoisted out of each step: {exported[1]} nodes, ")
    assert f" over {exported[3]} tensors of " in inspected


def shorter(part: Part) -> Result:
    part.model.graph.outputs.clear()
    return Result((part,), "no outputs")


def test_conditions_of_a_pass_are_checked(plain: Path) -> None:
    manifest = read_manifest(plain)
    component = next(c for c in components(manifest.spec, manifest.profile) if c.name == "vae_decoder")
    part = Part(component, ir.load(plain / "onnx" / "vae_decoder.onnx"))
    assert static_shapes(part)
    assert same_interface(part, (part,))
    with pytest.raises(ir.passes.PostconditionError, match=r"^shorter on vae_decoder: same_interface is false$"):
        Pass("shorter", shorter, requires=(static_shapes,), ensures=(same_interface,))(part)
    part.model.graph[0].outputs[0].shape = ir.Shape(["batch", 4, 8, 12])
    with pytest.raises(ir.passes.PreconditionError, match=r"^shorter on vae_decoder: static_shapes is false$"):
        Pass("shorter", shorter, requires=(static_shapes,), ensures=(same_interface,))(part)


def test_half_precision_stays_within_its_rounding(
    shape: str, checkpoint: Callable[[str], Path], bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Both orders are float16 roundings of one float32 value, so each is off by what float16 costs, and they differ
    by no more than the sum of both errors. What the passes may not do is cost more: half as much again at most."""
    plain = bundle(shape, **SIZE, precision="fp16", without=PASS_NAMES)
    manifest = read_manifest(plain)
    table = {component.name: component for component in components(manifest.spec, manifest.profile)}
    model = ir.load(plain / "onnx" / "denoiser.onnx")
    made, _ = run_passes(Part(table["denoiser"], model), GRAPH_PASSES, lambda _: None)
    parts = [(part.component, save(part.model, part.component, tmp_path)[0]) for part, _ in made]
    errors = []
    for some in ([(table["denoiser"], plain / "onnx" / "denoiser.onnx")], parts):
        source = open_source(str(checkpoint(shape)), random_weights=False, precision="fp16")
        module = build_module("denoiser", source, manifest.spec, manifest.profile)
        errors.append(check_component(module, table["denoiser"], some, "fp16")["next_latents"].error)
    assert 0 < errors[1] <= 1.5 * errors[0], errors


def test_the_command_offers_every_pass() -> None:
    """Its names are said apart, so that ``koala --help`` need not load the passes."""
    assert (*(each.name for each in MODULE_PASSES), *GRAPH_PASSES) == PASS_NAMES
