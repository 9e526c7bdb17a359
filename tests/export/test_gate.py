"""The gate accepts what the exporter writes and refuses a component with one wrong weight, naming its output.

The wrong weight is put into a copy of the ONNX external data; PyTorch and ONNX Runtime both run for real.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo

from koala_bundle.errors import GateError
from koala_bundle.manifest import read_manifest
from koala_bundle.tensors import Component, components
from koala_export.gate import BOUNDS, Agreement, check_component, compare
from koala_export.modules import build_module
from koala_export.source import open_source

SHAPE = "koala-700m-like"
# One tensor per component that its outputs depend on, and the output that must be named.
WEIGHTS = [
    ("text_encoder", "text_encoder.embeddings.token_embedding.weight", "hidden_states"),
    # Behind the hidden states: the first output agrees still, and the second is the one to name.
    ("text_encoder_2", "text_encoder.text_projection.weight", "text_embeds"),
    ("denoiser", "unet.conv_in.weight", "next_latents"),
    # These two are in the prologue, for every step at once and for the whole picture.
    ("denoiser", "unet.time_embedding.linear_1.weight", "next_latents"),
    ("denoiser", "unet.add_embedding.linear_2.weight", "next_latents"),
    ("vae_decoder", "vae.decoder.conv_out.weight", "images"),
]
Exported = tuple[Any, Component, list[tuple[Component, Path]]]


@pytest.fixture
def exported(
    checkpoint: Callable[[str], Path], bundle: Callable[..., Path], tmp_path: Path
) -> Callable[[str, str], Exported]:
    """Return a function from a component's name and precision to its module, table and a copy of its ONNX files."""

    def get(name: str, precision: str) -> Exported:
        folder = bundle(SHAPE, precision=precision)
        manifest = read_manifest(folder)
        source = open_source(str(checkpoint(SHAPE)), random_weights=False, precision=precision)
        module = build_module(name, source, manifest.spec, manifest.profile)
        component = next(c for c in components(manifest.spec, manifest.profile) if c.name == name)
        parts = []
        for entry in manifest.components:
            if entry.name == name or (name == "denoiser" and entry.name == "prologue"):
                files = [shutil.copy(folder / file, tmp_path) for file in entry.files]
                parts.append((entry, Path(files[0])))
        return module, component, parts

    return get


def change(parts: list[tuple[Component, Path]], name: str, factor: float) -> None:
    """Multiply the tensor ``name`` in the external data of the ONNX file that has it."""
    path, tensor = next(
        (path, tensor)
        for _, path in parts
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.name == name
    )
    place = ExternalDataInfo(tensor)
    data = path.with_name(place.location)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.memmap(data, dtype, "r+", offset=place.offset or 0, shape=tuple(tensor.dims))
    assert values.nbytes == place.length
    values *= dtype.type(factor)
    values.flush()


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("name", "weight", "output"), WEIGHTS, ids=[weight for _, weight, _ in WEIGHTS])
def test_one_negated_weight_is_found(
    exported: Callable[[str, str], Exported], precision: str, name: str, weight: str, output: str
) -> None:
    module, component, parts = exported(name, precision)
    error, cosine = BOUNDS[precision]

    good = check_component(module, component, parts, precision)
    assert list(good) == [tensor.name for tensor in component.outputs]
    allowance = 1 / 255 if name == "vae_decoder" else 0
    assert all(agreement.error <= error + allowance and agreement.cosine >= cosine for agreement in good.values())

    change(parts, weight, -1)
    with pytest.raises(GateError) as caught:
        check_component(module, component, parts, precision)
    wanted = f"PyTorch's values within {error:g} of their largest and a cosine of {cosine:g}"
    assert str(caught.value).startswith(f"{name}: {output}: expected {wanted}, found largest error ")


def test_the_sign_of_a_projection_is_the_sign_of_its_output(exported: Callable[[str, str], Exported]) -> None:
    module, component, parts = exported("text_encoder_2", "fp32")
    change(parts, "text_encoder.text_projection.weight", -1)
    with pytest.raises(GateError, match=r"text_embeds: .* found largest error 2\.0e\+00, cosine -1\.000000; "):
        check_component(module, component, parts, "fp32")


def test_a_weight_that_is_not_a_number_is_found(exported: Callable[[str, str], Exported]) -> None:
    module, component, parts = exported("text_encoder_2", "fp32")
    change(parts, "text_encoder.text_projection.weight", math.nan)
    with pytest.raises(GateError, match=r"text_embeds: expected finite values, found 128 of 128 .* by float16; "):
        check_component(module, component, parts, "fp32")


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("reference", "result"),
    [
        (vector(1, 2), vector(1, math.nan)),
        (vector(math.nan, 2), vector(1, 2)),
        (vector(math.nan, 2), vector(math.nan, 2)),
        (vector(0, 0), vector(math.nan, 0)),
        (vector(1, 2), vector(1, math.inf)),
    ],
    ids=str,
)
def test_what_is_not_finite_passes_no_bound(reference: Any, result: Any) -> None:
    agreement = compare(reference, result)
    for error, cosine in BOUNDS.values():
        assert not (agreement.error <= error and agreement.cosine >= cosine)


@pytest.mark.parametrize(
    ("reference", "result", "wanted"),
    [
        (vector(0, 0), vector(0, 0), Agreement(0, 1)),
        (vector(0, 0), vector(0, 0.5), Agreement(0.5, 0)),
        (vector(0, 2), vector(0, 0), Agreement(1, 0)),
        (vector(3, -4), vector(3, -4), Agreement(0, 1)),
        (vector(3, -4), vector(-3, 4), Agreement(2, -1)),
        (vector(3, -4), vector(4, 3), Agreement(1.75, 0)),
        (vector(1e-20, 0), vector(2e-20, 0), Agreement(1, 1)),
        # Bytes must not wrap around: 0 - 255 is not 1.
        (np.array([[255, 0]], np.uint8), np.array([[255, 255]], np.uint8), Agreement(1, math.sqrt(0.5))),
    ],
    ids=str,
)
def test_error_and_cosine(reference: Any, result: Any, wanted: Agreement) -> None:
    agreement = compare(reference, result)
    assert (agreement.error, agreement.cosine) == pytest.approx((wanted.error, wanted.cosine))
