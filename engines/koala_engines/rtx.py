"""The ``rtx`` target: TensorRT-RTX compiles ahead of time for compute capabilities, on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_bundle.engine_record import EngineKey
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_bundle.targets import RTX, TENSORRT
from koala_engines import kernels
from koala_engines.compiler import Examination
from koala_engines.options import BuildOptions
from koala_engines.trt_builder import TrtBuilder

# Compute capabilities of TensorRT-RTX 1.7 (its ComputeCapability enumeration; data-centre 9.0 and 10.0 are not in it).
RTX_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}


class RtxCompiler(TrtBuilder):
    """TensorRT-RTX: plans for compute capabilities, built anywhere."""

    def __init__(self, options: BuildOptions) -> None:
        super().__init__(RTX, options)
        for capability in options.compute_capabilities:
            if capability not in RTX_CAPABILITIES:
                raise ArgumentError(
                    "compute_capabilities",
                    expected=" or ".join(RTX_CAPABILITIES),
                    found=capability,
                    fix=f"pass one of these; for a data-centre GPU build target {TENSORRT} on it",
                )

    def key(self, manifest: Manifest) -> EngineKey:
        """Return what the plans depend on: no GPU."""
        capabilities = ",".join(sorted(self._options.compute_capabilities)) or "all"
        return self._key(manifest, None, {"compute_capabilities": capabilities})

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Compile one ONNX file and return the path of its plan."""
        trt: Any = self._trt
        wanted = self._options.compute_capabilities

        def configure(config: trt.IBuilderConfig) -> None:
            config.num_compute_capabilities = len(wanted)
            for index, capability in enumerate(wanted):
                config.set_compute_capability(getattr(trt.ComputeCapability, RTX_CAPABILITIES[capability]), index)

        return [self._build(name, onnx_path, folder, progress, configure)]

    def examine(self, plan: Path) -> Examination:
        """Read the names of kernels and the scratch memory from the plan's bytes."""
        data = plan.read_bytes()
        return Examination(kernels.of_rtx_plan(data), kernels.scratch_of_rtx_plan(data))
