"""What a compiler is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from koala_bundle.engine_record import EngineKey
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import Target

Measure: TypeAlias = Callable[[Target, ComponentEntry, Path], float]
"""Returns the seconds of one run of a component's plan on the GPU of this machine."""


class Examination(NamedTuple):
    """What a compiler made of a component: its kernels by kind, and the scratch memory of one run in bytes.

    ``kernels`` is empty and ``activation_bytes`` None where the plan does not show them.
    """

    kernels: dict[str, int]
    activation_bytes: int | None


class Compiler(Protocol):
    """Builds one set of plans of a target; opened once per build, with the options of that build."""

    target: Target

    @property
    def variant(self) -> str:
        """Which of the target's sets it builds (``koala_bundle.engine_record``)."""

    def key(self) -> EngineKey:
        """Return everything that the plans depend on besides their ONNX files."""

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Compile a component into ``folder`` and return the files: the plan first, then its external data.

        ``progress`` is called with the part done, 0 to 1. Raises BuildError with the compiler's own reason.
        """

    def examine(self, plan: Path) -> Examination:
        """Look into a plan that was built."""

    def losses(self, entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
        """Return in words what should have been kept and was not, such as a fused attention."""
