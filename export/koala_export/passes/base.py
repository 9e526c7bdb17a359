"""The shape of a graph pass: what it does, what it requires of a graph, and what it ensures about the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import PostconditionError, PreconditionError

from koala_bundle.tensors import Component
from koala_export.graph import shape_of


@dataclass(frozen=True)
class Part:
    """A component and its graph, whose inputs and outputs are the component's."""

    component: Component
    model: ir.Model


@dataclass(frozen=True)
class Result:
    """What a pass made of a part: one or several that compute the same, in the order in which they run.

    The last has the component's name. ``change`` says in a sentence what was changed; None: nothing was.
    """

    parts: tuple[Part, ...]
    change: str | None


Requirement = Callable[[Part], bool]
Guarantee = Callable[[Part, tuple[Part, ...]], bool]
"""Takes the part that a pass was given, whose graph may have changed since, and what the pass made of it."""


@dataclass(frozen=True)
class Pass:
    """A graph pass. ``run`` may change the graph that it is given."""

    name: str
    run: Callable[[Part], Result]
    requires: tuple[Requirement, ...]
    ensures: tuple[Guarantee, ...]

    def __call__(self, part: Part) -> Result:
        """Run the pass. Raises onnx_ir's PreconditionError or PostconditionError where a condition does not hold."""
        for required in self.requires:
            if not required(part):
                raise PreconditionError(f"{self.name} on {part.component.name}: {required.__name__} is false")
        result = self.run(part)
        for ensured in self.ensures:
            if not ensured(part, result.parts):
                raise PostconditionError(f"{self.name} on {part.component.name}: {ensured.__name__} is false")
        return result


def static_shapes(part: Part) -> bool:
    """Return whether every value has a shape without symbols."""
    values = (value for node in part.model.graph for value in node.outputs if value.name)
    return all(value.shape is not None and value.shape.is_static() for value in values)


def same_interface(part: Part, parts: tuple[Part, ...]) -> bool:
    """Return whether ``parts`` in their order take no more than ``part`` took, and give what it gave."""
    known = {tensor.name for tensor in part.component.inputs}
    for each in parts:
        component, graph = each.component, each.model.graph
        for values, tensors in ((graph.inputs, component.inputs), (graph.outputs, component.outputs)):
            if {v.name: shape_of(v) for v in values} != {t.name: component.graph_shape(t) for t in tensors}:
                return False
        if not known.issuperset(tensor.name for tensor in component.inputs):
            return False
        known |= {tensor.name for tensor in component.outputs}
    last = parts[-1].component
    return (last.name, last.outputs) == (part.component.name, part.component.outputs)
