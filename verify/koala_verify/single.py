"""Runs single components of a bundle, outside of a picture: as ONNX, and as a target's engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from koala_bundle.manifest import ComponentEntry, Manifest
from koala_bundle.tensors import Component
from koala_export.gate import Array, run_onnx
from koala_runtime.executor import Executor
from koala_runtime.program import TABLES, VAE_ENCODER, make_encoder_program, make_program
from koala_runtime.run import Run


def entries_for(manifest: Manifest, component: Component) -> list[ComponentEntry]:
    """Return the bundle's entries that compute a traced component, in order: those that passes split off come first."""
    main = manifest.component(component.name)
    inputs = {tensor.name for tensor in main.inputs}
    split_off = (entry for entry in manifest.components if entry.name not in manifest.traced)
    return [*(entry for entry in split_off if inputs & {tensor.name for tensor in entry.outputs}), main]


def run_onnx_files(bundle: Path, entries: Sequence[ComponentEntry], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of the last entry, after all of them have run in ONNX Runtime in turn."""
    return run_onnx([(entry, bundle / entry.files[0]) for entry in entries], inputs)


def run_engines(
    executor: Executor, manifest: Manifest, entries: Sequence[ComponentEntry], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the outputs of the last entry, after the engines of all of them have run on the device in turn."""
    with executor.device.current():
        alone = entries[-1].name == VAE_ENCODER
        components, half = manifest.components, executor.half
        program = make_encoder_program(components) if alone else make_program(components, 1, half=half, tables=TABLES)
        run = Run(executor, program)
        try:
            calls = {call.component: call for call in (*run.program.calls, run.program.preview)}
            for entry in entries:
                call = calls[entry.name]
                for tensor in entry.inputs:
                    if tensor.name in inputs:
                        placement = call.tensors[tensor.name]
                        value = inputs[tensor.name].astype(placement.dtype)
                        if entry.steps and tensor.per_step:
                            value = _first_row(value, placement.shape)
                        run.write(placement, value)
                run.compute(call)
            last = entries[-1]
            placements = calls[last.name].tensors
            return {tensor.name: run.read(placements[tensor.name]) for tensor in last.outputs}
        finally:
            run.close()


def _first_row(value: Array, table_shape: tuple[int, ...]) -> Array:
    """Return a table for all steps whose first row is ``value``."""
    table = np.zeros(table_shape, value.dtype)
    table[0, : value.size] = value.ravel()
    return table
