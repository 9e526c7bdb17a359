"""Layers of a bundle, drawn at random, and a copy of the bundle in which the weight of one is negated by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file

from koala_bundle.files import file_entry, write_sealed
from koala_bundle.manifest import read_manifest
from koala_verify.single import entries_for

KINDS = {"Conv": "convolution", "Gemm": "linear", "MatMul": "linear"}
KINDS |= {"GroupNormalization": "norm", "LayerNormalization": "norm"}


@dataclass(frozen=True)
class Weight:
    """A weight of an ONNX file, and whose it is: a name in a folder of the checkpoint, found by its values."""

    component: str
    file: str
    tensor: str
    kind: str
    folder: str
    name: str


def draw_layers(bundle: Path, checkpoint: Path, component: str, folder: str) -> list[Weight]:
    """Return the weights of a component's convolutions, linear layers and norms in random order, seed 0."""
    (path,) = (checkpoint / folder).glob("*.safetensors")
    names = {key(value): name for name, value in load_file(path).items()}
    manifest = read_manifest(bundle)
    found = []
    for entry in entries_for(manifest, manifest.component(component)):
        graph = onnx.load(bundle / entry.files[0]).graph
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type in KINDS and node.input[1] in weights:
                value = weights[node.input[1]]
                name = names.get(key(value)) or names[key(value.T)]
                found.append(Weight(component, entry.files[0], node.input[1], KINDS[node.op_type], folder, name))
    Random(0).shuffle(found)
    return found


def key(value: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    return value.shape, value.astype(np.float16).tobytes()


def with_changed(
    bundle: Path, copy: Path, weight: Weight, change: Callable[[NDArray[Any]], NDArray[Any]] = np.negative
) -> Path:
    """Return ``copy``, a bundle with one weight changed where it is stored, and its digests."""
    shutil.copytree(bundle, copy)
    path = copy / weight.file
    model = onnx.load(path, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.name == weight.tensor)
    value = np.ascontiguousarray(change(numpy_helper.to_array(tensor, str(path.parent))))
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {each.key: each.value for each in tensor.external_data}
        with (path.parent / place["location"]).open("r+b") as data:
            data.seek(int(place.get("offset", 0)))
            data.write(value.tobytes())
    else:
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        onnx.save(model, path)
    manifest = read_manifest(copy)
    files = {name: file_entry(copy / name) for name in manifest.files}
    write_sealed(copy / "manifest.json", replace(manifest, files=files))
    return copy
