"""The ``rtx`` target: TensorRT-RTX compiles ahead of time for compute capabilities, on any machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_bundle.engine_record import EngineKey
from koala_bundle.errors import ArgumentError
from koala_bundle.targets import RTX, TENSORRT
from koala_engines import kernels
from koala_engines.compiler import Examination
from koala_engines.options import BuildOptions
from koala_engines.trt_builder import TrtBuilder
from koala_machine.driver import query_driver
from koala_machine.support import CAPABILITIES, RTX_PORTABLE, TURING, supports

RTX_CAPABILITIES = {capability: f"SM{capability.replace('.', '')}" for capability in CAPABILITIES[RTX]}
"""Compute capabilities and their names in TensorRT-RTX's ComputeCapability enumeration."""


class RtxCompiler(TrtBuilder):
    """TensorRT-RTX: plans for compute capabilities, built anywhere.

    One set of plans serves Ampere and newer. Turing's plans are a set of their own, built where the GPU is one or where
    7.5 is asked for: in the same plan it would give the other GPUs more and slower kernels.
    """

    def __init__(self, options: BuildOptions) -> None:
        super().__init__(RTX, options)
        wanted = options.compute_capabilities
        for capability in wanted:
            if capability not in RTX_CAPABILITIES:
                raise ArgumentError(
                    "compute_capabilities",
                    expected=" or ".join(RTX_CAPABILITIES),
                    found=capability,
                    fix=f"pass one of these; for a data-centre GPU build target {TENSORRT} on it",
                )
        if TURING in wanted and set(wanted) != {TURING}:
            raise ArgumentError(
                "compute_capabilities",
                expected=f"{TURING} (Turing) by itself, since it would slow down the plans of the others",
                found=", ".join(wanted),
                fix=f"build {TURING} in one run and the others in another; the bundle keeps both",
            )
        driver = query_driver(device=options.device or 0)
        gpu = driver.gpu
        if not wanted:
            wanted = (TURING,) if gpu is not None and gpu.compute_capability == TURING else RTX_PORTABLE
        self._capabilities = tuple(sorted(wanted, key=float))
        self.variant = TURING if wanted == (TURING,) else ""
        if options.tune and (gpu is None or not supports(RTX, gpu)):
            raise ArgumentError(
                "tune",
                expected="an RTX GPU, on which the builds are timed",
                found=str(gpu or driver.problem),
                fix="build on a machine that has one, or leave out tune",
            )

    def key(self) -> EngineKey:
        """Return what the plans depend on: no GPU."""
        return self._key(None, {"compute_capabilities": ",".join(self._capabilities), "require_user_allocation": "1"})

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Compile one ONNX file and return the path of its plan."""
        trt: Any = self._trt
        # The portable list is what the library builds when none is named, and then it also allows newer GPUs.
        named = () if self._capabilities == RTX_PORTABLE else self._capabilities

        def configure(config: trt.IBuilderConfig) -> None:
            # Without it the library may allocate while the plan runs, which cannot be captured in a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(named)
            for index, capability in enumerate(named):
                config.set_compute_capability(getattr(trt.ComputeCapability, RTX_CAPABILITIES[capability]), index)

        return [self._build(name, onnx_path, folder, progress, configure)]

    def examine(self, plan: Path) -> Examination:
        """Read the names of kernels and the scratch memory from the plan's bytes."""
        data = plan.read_bytes()
        return Examination(kernels.of_rtx_plan(data), kernels.scratch_of_rtx_plan(data))
