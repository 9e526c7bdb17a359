"""One torch module to an ONNX graph, without the exporter's slowest steps.

``torch.onnx.export`` traces a module with ``torch.export`` and then traces that program again, to decompose operators
that have no translation to ONNX and to remove mutations. The modules here have neither, except for a few operators
that return what they were given, so the second trace is skipped; it takes longer than the first. The exporter also
collects the translations of all operators again for each module. The public function offers no way to share them, so
this calls ``_core``, which it is built on.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.version_converter import convert_version
from torch import Tensor, nn
from torch.fx import Node
from torch.onnx._internal.exporter import _core, _registration

OPSET = 23  # the first with Attention and GroupNormalization as TensorRT 11 takes them
_ATEN = torch.ops.aten


def capture(module: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """Return ``module`` in evaluation mode as a program of functional operators, traced with ``inputs`` by name."""
    program = torch.export.export(module, (), inputs, strict=False)
    graph = program.graph_module.graph
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if _returns_its_input(node) and not any(user.op == "output" for user in node.users):  # these have fixed names
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is _ATEN.to.dtype:
            node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {"dtype": node.args[1]}
    return program


def translate(program: torch.export.ExportedProgram, outputs: list[str]) -> ir.Model:
    """Return ``program`` in ONNX with ``outputs`` as the names of its results; inputs keep theirs."""
    decompose = program.run_decompositions
    if all(map(_is_functional, program.graph.nodes)):
        program.run_decompositions = lambda *_: program
        try:
            return _translate(program, outputs)
        except torch.onnx.OnnxExporterError:  # an operator without a translation
            program.run_decompositions = decompose
    return _translate(program, outputs)


@cache
def _registry() -> _registration.ONNXRegistry:
    """Return the translations of torch's operators; collecting them takes longer than most translations."""
    return _registration.ONNXRegistry.from_torchlib(opset_version=OPSET)


def _translate(program: torch.export.ExportedProgram, outputs: list[str]) -> ir.Model:
    model = _core.exported_program_to_ir(program, registry=_registry())
    convert_version(model, OPSET, fallback=True)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    return model


def _returns_its_input(node: Node) -> bool:
    if node.target is _ATEN.dropout.default:
        return node.args[2] is False  # not in training
    if node.target in (_ATEN.contiguous.default, _ATEN.alias.default, _ATEN.to.device):
        return bool(_value(node).dtype == _value(node.args[0]).dtype)
    if node.target in (_ATEN.view.default, _ATEN.reshape.default):
        return bool(_value(node).shape == _value(node.args[0]).shape)
    return False


def _value(node: Any) -> Any:
    """Return the fake tensor that stands for the result of ``node``."""
    return node.meta["val"]


def _is_functional(node: Node) -> bool:
    """Return whether ``node`` changes none of its inputs and is no control flow."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op != "get_attr"
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
