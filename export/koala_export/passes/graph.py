"""Small helpers that the passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def constant(graph: ir.Graph, values: list[int], name: str) -> ir.Value:
    """Add a list of integers to the graph, int64 [len(values)]."""
    tensor = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Return the static shape of a value."""
    assert value is not None and value.shape is not None
    return tuple(int(side) for side in value.shape)  # type: ignore[arg-type]
