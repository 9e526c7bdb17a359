"""Compares an exported component with PyTorch, before the bundle is put into place.

The reference is the same module in float32 with the same weights; ONNX Runtime runs the ONNX file as written.

Bounds: float32 reorders sums, which for these networks moves outputs by about 1e-6 of their largest value; 1e-3
leaves room for wide reductions. float16 rounds every tensor to 2^-11; over the square root of about 1,500
operations in a row that is 2 % of the largest value where errors are independent, so 5 % is the bound. The cosine
catches what a maximum does not show, such as a missing layer. Pixels of a uint8 picture may differ by one level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from koala_bundle.errors import GateError
from koala_bundle.tensors import Component, IOTensor
from koala_export.configs import source_file
from koala_export.trace import example_inputs

BOUNDS = {"fp32": (1e-3, 0.99999), "fp16": (5e-2, 0.999)}  # largest relative error, smallest cosine
Array: TypeAlias = NDArray[Any]
_SEED = 1  # not the one used to trace


@dataclass(frozen=True)
class Agreement:
    """``error``: largest difference over the reference's largest value; ``cosine``: similarity of all values."""

    error: float
    cosine: float

    def __str__(self) -> str:
        return f"largest error {self.error:.1e}, cosine {self.cosine:.6f}"


Part = tuple[Component, Path]
"""A component and its ONNX file."""


def check_component(
    module: nn.Module, component: Component, parts: Sequence[Part], precision: str
) -> dict[str, Agreement]:
    """Compare the ONNX files of ``component``, run in their order, with ``module``; return the agreement by output.

    Converts ``module`` to float32 in place, so that only one copy of the weights is held. Raises GateError.
    """
    inputs = gate_inputs(component)
    results = run_onnx(parts, inputs)
    references = run_torch(module, component, inputs)
    agreements = {}
    for tensor in component.outputs:
        _check_finite(component, tensor, references[tensor.name], results[tensor.name])
        agreement = compare(references[tensor.name], results[tensor.name])
        if not accepted(agreement, tensor, precision):
            largest, cosine = BOUNDS[precision]
            raise GateError(
                f"{component.name}: {tensor.name}",
                expected=f"PyTorch's values within {largest:g} of their largest and a cosine of {cosine:g}",
                found=str(agreement),
                fix="report the checkpoint, or export it without the gate for a dry run",
            )
        agreements[tensor.name] = agreement
    return agreements


def _check_finite(component: Component, tensor: IOTensor, reference: Array, result: Array) -> None:
    """Tell values that are no numbers from values that differ."""
    for values, by, fix in (
        (reference, "PyTorch in float32", f"check the weights and {source_file(component.name)}: these are its values"),
        (result, "float16", "export with precision fp32, whose range is wider"),
    ):
        if wrong := int(values.size - np.isfinite(values.astype(np.float32)).sum()):
            raise GateError(
                f"{component.name}: {tensor.name}",
                expected="finite values",
                found=f"{wrong} of {values.size} that are NaN or infinite, computed by {by}",
                fix=fix,
            )


def accepted(agreement: Agreement, tensor: IOTensor, precision: str) -> bool:
    """Whether an output is within the bounds; a pixel of a uint8 picture may differ by one level."""
    largest, cosine = BOUNDS[precision]
    allowance = 1 / 255 if tensor.dtype == "uint8" else 0.0
    return agreement.error <= largest + allowance and agreement.cosine >= cosine


def gate_inputs(component: Component) -> dict[str, Array]:
    """Return inputs of the component by name, other than those that it was traced with."""
    return {name: value.numpy() for name, value in example_inputs(component, _SEED).items()}


@torch.no_grad()
def run_torch(module: nn.Module, component: Component, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of ``module`` in float32, to which it is converted in place, by name."""
    module.float()
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    outputs = module(**{n: v.float() if v.is_floating_point() else v for n, v in tensors.items()})
    together = outputs if isinstance(outputs, tuple) else (outputs,)
    return {tensor.name: value.numpy() for tensor, value in zip(component.outputs, together, strict=True)}


def run_onnx(parts: Sequence[Part], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return all outputs of the ONNX files, run in their order, and ``inputs``, by name."""
    known = dict(inputs)
    for part, path in parts:
        known |= _run(part, path, known)
    return known


def _run(part: Component, path: Path, known: Mapping[str, Array]) -> dict[str, Array]:
    """Run one file; where it computes many steps at once, ``known`` and the results are those of the last one."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # an arena keeps its peak, twice what one 1024 px run needs, to the end
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    results = session.run([tensor.name for tensor in part.outputs], graph_inputs(part, known))
    return {t.name: last_step(part, t, result) for t, result in zip(part.outputs, results, strict=True)}


def graph_inputs(part: Component, known: Mapping[str, Array]) -> dict[str, Array]:
    """Return what the graph of ``part`` takes; where that is a table of many steps, ``known`` is its last row."""
    feeds = {}
    for tensor in part.inputs:
        feeds[tensor.name] = known[tensor.name]
        if part.steps and tensor.per_step:
            feeds[tensor.name] = np.zeros(part.graph_shape(tensor), tensor.dtype)
            feeds[tensor.name][-1, : math.prod(tensor.shape)] = known[tensor.name].ravel()
    return feeds


def last_step(part: Component, tensor: IOTensor, result: Array) -> Array:
    """Return the value of an output of ``part`` in the last of the steps that its graph computes at once."""
    if part.steps and tensor.per_step:
        return result[-1, : math.prod(tensor.shape)].reshape(tensor.shape)
    return result


def compare(reference: NDArray[np.generic], result: NDArray[np.generic]) -> Agreement:
    """Return the agreement of ``result`` with ``reference``; NaN in either gives NaN, which passes no bound."""
    wanted, got = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
    scale = float(np.abs(wanted).max()) or 1.0
    with np.errstate(invalid="ignore"):  # infinity - infinity is NaN, which is what is wanted
        error = float(np.abs(wanted - got).max()) / scale
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(got))
    both_zero = not wanted.any() and not got.any()
    cosine = 1.0 if both_zero else float(wanted @ got) / (norms or 1.0)
    return Agreement(error, cosine)
