"""The ``cuda`` target: plans are the bundle's graphs with fused operations, beside its weights.

ONNX Runtime optimises them for the GPU when it loads them. It could save what it optimised, but only on a GPU, and for
the provider and version at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from koala_bundle.engine_record import EngineKey
from koala_bundle.errors import BuildError, KoalaError, first_line
from koala_bundle.files import link
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import CUDA
from koala_engines.compiler import Examination
from koala_engines.cuda_graph import write_fused
from koala_engines.kernels import of_graph


class CudaCompiler:
    """No compiler: graphs that are rewritten, and links to their weights."""

    target = CUDA
    variant = ""

    def key(self) -> EngineKey:
        """Return what the plans depend on: nothing but their ONNX files."""
        choices = {"graph_optimization": "when loaded", "fused": "attention,group_norm"}
        return EngineKey(CUDA.library, "of any version", "any", None, choices)

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Write the graph and link its weights; return both."""
        try:
            write_fused(onnx_path, folder / onnx_path.name)
        except (KoalaError, OSError):
            raise
        except Exception as error:  # onnx's exceptions share no base class of their own
            raise BuildError(
                f"{CUDA}: {name}",
                expected="a graph whose operations can be fused",
                found=first_line(error),
                fix="export the bundle again",
            ) from error
        weights = onnx_path.with_name(f"{onnx_path.name}.data")
        if weights.is_file():
            link(weights, folder / weights.name)
        progress(1.0)
        return [path for path in (folder / onnx_path.name, folder / weights.name) if path.is_file()]

    def examine(self, plan: Path) -> Examination:
        """Count the operations by kind; the scratch memory of a run is ONNX Runtime's own."""
        return Examination(of_graph(plan), None)

    def losses(self, entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
        """Return nothing: what ONNX Runtime fuses shows only on the GPU."""
        return []
