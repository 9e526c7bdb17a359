"""The values that PyTorch computes inside a component, in float32, under the names that they have in its ONNX graph.

``torch.export`` records every operator of a module, and the exporter names the tensors of an ONNX graph after the
operators that give them. The recorded program is run as it was recorded, before any change of ours, with
PyTorch's own kernels and the weights of the checkpoint. Only the names come from a trace in the bundle's precision:
wherever the program says float16, it computes in float32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_map

from koala_bundle.errors import GateError
from koala_bundle.manifest import Manifest
from koala_bundle.tensors import Component
from koala_export.checkpoint import Checkpoint, FolderCheckpoint
from koala_export.gate import Array, accepted, compare, run_torch
from koala_export.module_passes.rescale import rescale
from koala_export.modules import build_module, model_of
from koala_export.other_models import ROLES
from koala_export.trace import example_inputs
from koala_verify.reference import open_models


@dataclass(frozen=True)
class Operator:
    """An operator of the program: float32 shape of its result, the checkpoint's module and weights that it belongs to.

    ``module`` is a folder of the checkpoint and a path in its model, as in ``unet/conv_in``, or empty for what is added
    around the model, such as the sampler. ``weights`` are names in the files of that folder.
    """

    node: str
    shape: tuple[int, ...]
    module: str
    weights: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of its result in float32."""
        return 4 * math.prod(self.shape)


class TorchValues:
    """A component in PyTorch, on fixed inputs. ``operators`` has those with a floating-point result, by ONNX name.

    Raises GateError if the program does not compute what the module computes.
    """

    def __init__(
        self, component: Component, checkpoint: FolderCheckpoint, manifest: Manifest, inputs: Mapping[str, Array]
    ) -> None:
        program, module = _trace(component, open_models(checkpoint, manifest), manifest)
        outputs = run_torch(module, component, inputs)
        if model_of(component.name) in ROLES and _is_rescaled(manifest, module.vae):
            rescale(module.vae)  # as the program was: it is traced from a VAE of which all weights are scaled
        self._program = program.graph_module
        self._arguments = _arguments(program, module.state_dict(), inputs)
        results = {node: tensor.name for node, tensor in zip(_results(program), component.outputs, strict=True)}
        self.operators = _operators(program, model_of(component.name), checkpoint, results)
        self._check(component, outputs, {name: node for node, name in results.items()})

    def compute(self, names: Collection[str]) -> dict[str, Array]:
        """Return the results of the operators with these ONNX names, float32."""
        nodes = {self.operators[name].node: name for name in names}
        kept = self._run(nodes)
        return {name: kept[node] for node, name in nodes.items()}

    @torch.no_grad()
    def _run(self, nodes: Collection[str]) -> dict[str, Array]:
        interpreter = _InFloat32(self._program, nodes)
        interpreter.run(*self._arguments)
        return interpreter.kept

    def _check(self, component: Component, outputs: Mapping[str, Array], nodes: Mapping[str, str]) -> None:
        """Refuse a program that does not give what the module gives: it would be no reference."""
        found = self._run(nodes.values())
        for tensor in component.outputs:
            agreement = compare(outputs[tensor.name], found[nodes[tensor.name]])
            if not accepted(agreement, tensor, "fp32"):
                raise GateError(
                    f"{component.name}: {tensor.name}",
                    expected="a traced program that computes what its PyTorch module computes",
                    found=str(agreement),
                    fix="report the checkpoint's config.json",
                )


def _trace(
    component: Component, checkpoint: Checkpoint, manifest: Manifest
) -> tuple[torch.export.ExportedProgram, Any]:
    """Return the program, traced as the bundle was, and the module in float32 with the checkpoint's own weights."""
    spec, profile = manifest.spec, manifest.profile
    module: nn.Module = build_module(component.name, checkpoint, spec, profile, manifest.passes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (), example_inputs(component), strict=False)
    if profile.precision != "fp32":
        module = build_module(component.name, checkpoint, spec, replace(profile, precision="fp32"))
    return program, module


def _is_rescaled(manifest: Manifest, vae: Any) -> bool:
    half = manifest.profile.precision == "fp16"
    return half and bool(vae.config.get("force_upcast")) and "rescale" in manifest.passes


def _operators(
    program: torch.export.ExportedProgram, model: str, checkpoint: FolderCheckpoint, results: Mapping[str, str]
) -> dict[str, Operator]:
    """Return the operators with a floating-point result by ONNX name; ``results`` has that of the outputs, by node."""
    specs = program.graph_signature.input_specs
    weights = {str(spec.arg.name): _inside(str(spec.target)) for spec in specs if spec.target}
    known = set() if model in ROLES else checkpoint.weight_names(model)
    # transformers 4 and 5 differ in a prefix
    prefix = "text_model." if any(f"text_model.{name}" in known - {name} for name in weights.values()) else ""
    operators = {}
    for node in program.graph.nodes:
        value, path = node.meta.get("val"), _module(node)
        if node.op != "call_function" or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        module = f"{model}/{prefix}{_inside(path)}" if "." in path else model if path else ""
        used = tuple(prefix + weights[each.name] for each in node.all_input_nodes if each.name in weights)
        operators[results.get(node.name, node.name)] = Operator(node.name, tuple(value.shape), module, used)
    return operators


def _arguments(
    program: torch.export.ExportedProgram, weights: Mapping[str, Tensor], inputs: Mapping[str, Array]
) -> list[Tensor]:
    """Return what the program takes, in its order: weights, constants and inputs, all floats in float32."""
    arguments = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            value = torch.from_numpy(inputs[spec.arg.name])
        else:
            value = weights.get(str(spec.target), program.constants.get(str(spec.target)))
        arguments.append(value.float() if value.is_floating_point() else value)
    return arguments


def _results(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the nodes that give the program's outputs."""
    return [str(spec.arg.name) for spec in program.graph_signature.output_specs]


def _module(node: fx.Node) -> str:
    """Return the path of the torch module that ``node`` was recorded in."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[-1] if paths else ""


def _inside(path: str) -> str:
    """Return a path without its first part, which is our own module's name for the checkpoint's model."""
    return path.partition(".")[2]


class _InFloat32(fx.Interpreter):
    """Runs a program, with float32 in place of float16, and keeps copies of the results of ``nodes``."""

    def __init__(self, program: fx.GraphModule, nodes: Collection[str]) -> None:
        super().__init__(program)
        self._nodes, self.kept = {*nodes}, dict[str, Array]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._nodes:
            self.kept[n.name] = value.numpy().copy()
        return value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda each: torch.float32 if each is torch.float16 else each, (args, kwargs))
        return super().call_function(target, args, kwargs)
