"""The ``cuda`` target: plans are the bundle's ONNX files, which ONNX Runtime optimises for the GPU when it loads them.

It could save what it optimised, but only on a GPU, and for the provider and version at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from koala_bundle.engine_record import EngineKey
from koala_bundle.files import link
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import CUDA
from koala_engines.compiler import Examination
from koala_engines.kernels import of_graph


class CudaCompiler:
    """No compiler: links to the ONNX files."""

    target = CUDA
    variant = ""

    def key(self) -> EngineKey:
        """Return what the plans depend on: nothing but their ONNX files."""
        return EngineKey(CUDA.library, "of any version", "any", None, {"graph_optimization": "when loaded"})

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Link the graph and its weights; return both."""
        files = [path for path in (onnx_path, onnx_path.with_name(f"{onnx_path.name}.data")) if path.is_file()]
        for path in files:
            link(path, folder / path.name)
        progress(1.0)
        return [folder / path.name for path in files]

    def examine(self, plan: Path) -> Examination:
        """Count the operations by kind; the scratch memory of a run is ONNX Runtime's own."""
        return Examination(of_graph(plan), None)

    def losses(self, entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
        """Return nothing: what ONNX Runtime fuses shows only on the GPU."""
        return []
