"""Where a component goes wrong: every tensor of its ONNX graph that PyTorch computes too, compared with PyTorch's.

The reference is ``torch_values``: the checkpoint in float32, never the bundle. Polygraphy runs both sides and judges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from polygraphy.comparator import Comparator, IterationResult
from polygraphy.logger import G_LOGGER

from koala_bundle.errors import ArgumentError, BuildError, first_line
from koala_bundle.files import check_files
from koala_bundle.manifest import ComponentEntry, read_manifest
from koala_bundle.progress import Report, no_report
from koala_bundle.targets import CPU, TARGETS, Target, find_target
from koala_bundle.tensors import components
from koala_export.gate import Array, gate_inputs, graph_inputs, last_step
from koala_machine.driver import query_driver
from koala_runtime.preflight import check_machine, obstacle
from koala_verify.layer_comparison import GraphTensor, Layer, Layers, judge
from koala_verify.layer_runners import REFERENCE, TorchRunner, open_runner
from koala_verify.reference import open_checkpoint
from koala_verify.single import entries_for
from koala_verify.torch_values import TorchValues

PORTION = 1 << 30
"""Bytes of PyTorch's values that are held at a time. The component runs once per portion, on both sides."""


def compare_layers(
    bundle: Path,
    source: str,
    component: str,
    target: str | None = None,
    save: Path | None = None,
    report: Report = no_report,
    embeddings: Sequence[Path] = (),
    loras: Sequence[str] = (),
) -> Layers:
    """Compare the tensors inside ``component`` with those of the checkpoint ``source`` in PyTorch, in float32.

    ``embeddings`` and ``loras`` are those that the bundle was exported with. ``target`` computes the bundle's ONNX
    graph; None takes the best that runs here. ``save`` is a new folder for the values of both sides, as Polygraphy's
    RunResults. Differences are in the result. Raises InputError for wrong arguments, BuildError if the target refuses
    the graph.
    """
    manifest = read_manifest(bundle)
    checkpoint = open_checkpoint(source, manifest, embeddings, loras)
    known = {each.name: each for each in components(manifest.spec, manifest.profile)}
    if component not in known:
        raise ArgumentError("component", expected=" or ".join(known), found=repr(component), fix="pass one of these")
    chosen, entries = _choose(target), entries_for(manifest, known[component])
    fix = f"export the bundle again with `koala export {source} {bundle}`"
    check_files(bundle, {name: manifest.files[name] for entry in entries for name in entry.files}, fix)
    with _results_folder(save) as keep:
        report(f"{component}: tracing the checkpoint in PyTorch")
        inputs = gate_inputs(known[component])
        values = TorchValues(known[component], checkpoint, manifest, inputs)
        layers, inside = list[Layer](), 0
        for entry in entries:
            tensors = _tensors(bundle / entry.files[0])
            named = [tensor for tensor in tensors if tensor.name in values.operators]
            inside += len(tensors) - len(named)
            for number, portion in enumerate(portions(named, values), 1):
                report(f"{entry.name}: PyTorch and {chosen}, tensors {portion[0].name} to {portion[-1].name}")
                wanted = [tensor.name for tensor in portion]
                results, outputs = _run(bundle, entry, chosen, values, wanted, inputs)
                keep(f"{entry.name}-{number}", results)
                layers += judge(entry.name, portion, values.operators, results, manifest.profile.precision)
            inputs |= outputs
    return Layers(str(bundle), source, component, str(chosen), manifest.profile, tuple(layers), inside)


def _choose(name: str | None) -> Target:
    if name is None:
        return next((target for target in TARGETS if obstacle(target) is None), CPU)
    target = find_target(name)
    check_machine(target, query_driver())
    return target


def _tensors(path: Path) -> list[GraphTensor]:
    """Return the floating-point results of the nodes of an ONNX file, in their order."""
    graph = onnx.load(path, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    tensors, rounded = [], set[str]()
    for node in graph.node:
        if node.op_type == "Round" or not rounded.isdisjoint(node.input):
            rounded |= {*node.output}
        tensors += [
            GraphTensor(name, node.op_type, name in rounded, tuple(node.input) if node.op_type == "Sub" else ())
            for name in node.output
            if types.get(name) in floats
        ]
    return tensors


def portions(tensors: Sequence[GraphTensor], values: TorchValues) -> Iterator[list[GraphTensor]]:
    """Yield the tensors in lists of at most PORTION bytes, or of one tensor."""
    held, portion = 0, list[GraphTensor]()
    for tensor in tensors:
        size = values.operators[tensor.name].nbytes
        if portion and held + size > PORTION:
            yield portion
            held, portion = 0, []
        held += size
        portion.append(tensor)
    if portion:
        yield portion


def _run(
    bundle: Path,
    entry: ComponentEntry,
    target: Target,
    values: TorchValues,
    names: Sequence[str],
    known: Mapping[str, Array],
) -> tuple[Any, dict[str, Array]]:
    """Return Polygraphy's RunResults of ``names``, and the outputs of ``entry`` on the target."""
    # TensorRT takes uint8 at a network's edge only, so that its outputs have to stay outputs.
    marked = [*dict.fromkeys((*names, *(tensor.name for tensor in entry.outputs)))]
    runners = [TorchRunner(values, names), open_runner(target, bundle / entry.files[0], marked)]
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(runners, data_loader=[graph_inputs(entry, known)])
    except Exception as error:  # neither ONNX Runtime's nor Polygraphy's exceptions tell whose fault it is
        raise BuildError(
            f"{target}: {entry.name}",
            expected="a graph that it runs with tensors inside as outputs",
            found=first_line(error),
            fix="check free memory, or compare on target cpu",
        ) from error
    (wanted,), (got,) = results[REFERENCE], results[str(target)]
    outputs = {tensor.name: last_step(entry, tensor, got[tensor.name]) for tensor in entry.outputs}
    kept = {name: aligned(got[name], wanted[name], entry.steps) for name in names}
    results[str(target)] = [IterationResult(kept, got.runtime, str(target))]
    return results, outputs


def aligned(value: Array, wanted: Array, steps: int) -> Array:
    """Return ``value`` in the layout of PyTorch's: of the last of ``steps``, and batch before tokens.

    ``sequence_major`` puts tokens first. Where both are as many, the order that fits better is taken.
    """
    if steps and value.shape != wanted.shape and len(value) == steps:
        value = value[-1]
        if value.ndim == 1 and value.size >= wanted.size:  # a row that is padded
            value = value[: wanted.size].reshape(wanted.shape)
    if value.ndim == 3:
        swapped = value.swapaxes(0, 1)
        unequal = value.shape != wanted.shape
        if swapped.shape == wanted.shape and (unequal or _distance(swapped, wanted) < _distance(value, wanted)):
            value = swapped
    return np.ascontiguousarray(value)


def _distance(value: Array, wanted: Array) -> float:
    return float(np.abs(value.astype(np.float32) - wanted).max())


@contextmanager
def _results_folder(path: Path | None) -> Iterator[Callable[[str, Any], None]]:
    """Yield what saves RunResults under a name; the folder ``path`` is there when all are in it, or not at all."""
    if path is None:
        yield lambda name, results: None
        return
    if path.exists() or not path.parent.is_dir():
        raise ArgumentError(
            "save",
            expected="a new folder in one that exists",
            found=f"{path}, which exists" if path.exists() else str(path),
            fix="name another folder",
        )
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as partial:
        folder = Path(partial) / "results"
        folder.mkdir()

        def save(name: str, results: Any) -> None:
            with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
                results.save(str(folder / f"{name}.json"))

        yield save
        folder.rename(path)
