"""A torch module to a graph, and a graph to an ONNX file: opset 23, strongly typed, weights in a file beside it.

Neither holds paths or stack traces of this machine.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from koala_bundle.errors import BuildError, first_line
from koala_bundle.tensors import HISTORY, Component, IOTensor
from koala_export.capture import capture, translate
from koala_export.configs import source_file
from koala_export.simplify import simplify


def example_inputs(component: Component, seed: int = 0) -> dict[str, Tensor]:
    """Return inputs of the component's shapes and dtypes with values that occur in a run, by name.

    A sampler's coefficients make every output depend on every input, and most on the U-Net's prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed = {
        "timestep": 500.0,
        "input_scale": 0.5,
        "guidance_scale": 3.5,
        "guidance_rescale": 0.7,
        "time_ids": 512.0,
    }
    fixed |= {"prompt_mask": 1.0}
    inputs = {}
    for tensor in component.inputs:
        dtype = getattr(torch, tensor.dtype)
        if tensor.name in fixed:
            inputs[tensor.name] = torch.full(tensor.shape, fixed[tensor.name], dtype=dtype)
        elif tensor.dtype in ("int32", "uint8"):
            inputs[tensor.name] = torch.randint(0, 256, tensor.shape, generator=generator, dtype=dtype)
        else:
            inputs[tensor.name] = torch.randn(tensor.shape, generator=generator).to(dtype)
        if tensor.name == "coefficients":
            inputs[tensor.name] *= 0.2
            inputs[tensor.name][:, HISTORY + 1] = 1
    return inputs


def trace(module: nn.Module, component: Component) -> ir.Model:
    """Return ``module`` as an ONNX graph that holds nothing of this machine. Raises BuildError."""
    inputs = example_inputs(component)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            model = translate(capture(module, inputs), [tensor.name for tensor in component.outputs])
    except Exception as error:  # torch.export raises many kinds
        raise BuildError(
            f"{component.name} ({source_file(component.name)})",
            expected="a module that runs, and that torch exports to ONNX",
            found=first_line(error),
            fix="check that diffusers draws with the checkpoint; if it does, report this file",
        ) from error
    simplify(model)
    _clear_notes(model)
    return model


def _clear_notes(model: ir.Model) -> None:
    """Remove the exporter's notes on nodes and values: stack traces, paths of this machine, origins of constants."""
    graph = model.graph
    values = [value for node in graph for value in node.outputs]
    for holder in (model, graph, *graph, *graph.inputs, *graph.initializers.values(), *values):
        holder.metadata_props.clear()
        holder.doc_string = None


def save(model: ir.Model, component: Component, folder: Path) -> list[Path]:
    """Write ``NAME.onnx`` and ``NAME.onnx.data``, check them and return both. Raises BuildError."""
    path = folder / f"{component.name}.onnx"
    data = path.with_name(f"{path.name}.data")
    for leftover in (path, data):  # of an export that was killed: it may be a link to another bundle's
        leftover.unlink(missing_ok=True)
    ir.save(model, path, external_data=data.name)
    _check(path, component)
    return [path, data]


def _check(path: Path, component: Component) -> None:
    try:
        onnx.checker.check_model(path, full_check=True)
    except onnx.checker.ValidationError as error:
        raise BuildError(
            component.name,
            expected="valid ONNX",
            found=first_line(error),
            fix=f"report the checkpoint's {source_file(component.name)}",
        ) from error
    graph = onnx.load(path, load_external_data=False).graph
    for kind, values, tensors in (
        ("inputs", graph.input, component.inputs),
        ("outputs", graph.output, component.outputs),
    ):
        found = tuple(_io_tensor(value) for value in values)
        wanted = [IOTensor(tensor.name, tensor.dtype, component.graph_shape(tensor)) for tensor in tensors]
        if sorted(found, key=_name) != sorted(wanted, key=_name):
            raise BuildError(
                f"{component.name}: {kind}",
                expected=str(wanted),
                found=str([*found]),
                fix=f"report the checkpoint's {source_file(component.name)}",
            )


def _name(tensor: IOTensor) -> str:
    return tensor.name


def _io_tensor(value: onnx.ValueInfoProto) -> IOTensor:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return IOTensor(value.name, dtype, tuple(dimension.dim_value for dimension in kind.shape.dim))
