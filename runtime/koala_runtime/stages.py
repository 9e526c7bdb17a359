"""What the loop knows about hardware: a stage can be run, an executor makes stages and owns their buffers.

A stage is one component with all its tensors bound to buffers; running it enqueues the work and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from koala_runtime.contract.io import IOTensor

Array: TypeAlias = NDArray[Any]
Stage: TypeAlias = Callable[[], None]


class Buffer(Protocol):
    """Memory of one tensor, or of a table of them, whose rows are padded (``IOTensor.row_items``)."""

    def write(self, values: Array) -> None:
        """Copy ``values`` in: those of the tensor, or [rows, ...] for the first rows of a table."""

    def read(self) -> Array:
        """Return a copy of what the buffer holds now."""

    def row(self, index: int) -> Buffer:
        """Return the ``index``-th tensor of a table, sharing its memory."""

    def rows(self, start: int, count: int) -> Buffer:
        """Return a piece of a table, rows padded as they are, sharing its memory."""


class Executor(Protocol):
    """Runs the components of one set of engines."""

    def allocate(self, tensor: IOTensor, rows: int | None = None) -> Buffer:
        """Return a buffer for ``tensor``, or for a table of ``rows`` of them."""

    def bind(self, component: str, tensors: Mapping[str, Buffer]) -> Stage:
        """Return ``component`` with its inputs and outputs bound to ``tensors``, by name."""

    def close(self) -> None:
        """Free everything the executor holds."""
