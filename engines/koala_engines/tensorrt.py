"""The ``tensorrt`` target: TensorRT tunes on the GPU that is present, and keeps a timing cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_bundle.engine_record import EngineKey, gpu_variant
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.files import write_atomic
from koala_bundle.targets import RTX, TENSORRT
from koala_engines import kernels
from koala_engines.compiler import Examination
from koala_engines.options import BuildOptions
from koala_engines.trt_builder import TrtBuilder
from koala_machine.driver import query_driver
from koala_machine.support import check_driver, check_gpu, install_command

TENSORRT_MAJOR = 11
TIMING_ITERATIONS = 8
"""Runs of each tactic that TensorRT averages; with its default of 1 the choice depends on the moment."""

_log = logging.getLogger(__name__)


class TensorRTCompiler(TrtBuilder):
    """TensorRT: plans for the GPU of this machine. Raises TargetError where there is none, or the driver is too old."""

    def __init__(self, options: BuildOptions) -> None:
        driver = query_driver(device=options.device or 0)
        if driver.gpu is None:
            raise TargetError(
                f"target {TENSORRT}",
                expected="the NVIDIA GPU that the plans are for",
                found=str(driver.problem),
                fix="build on the machine that will run them, or build target rtx, which needs no GPU",
            )
        check_gpu(TENSORRT, driver.gpu)
        check_driver(TENSORRT, driver)
        super().__init__(TENSORRT, options)
        if int(self.version.split(".")[0]) != TENSORRT_MAJOR:
            raise TargetError(
                f"target {TENSORRT}",
                expected=f"TensorRT {TENSORRT_MAJOR}",
                found=self.version,
                fix=f"install it with {install_command(TENSORRT)}",
            )
        if options.compute_capabilities:
            raise ArgumentError(
                "compute_capabilities",
                expected=f"none for target {TENSORRT}, which builds for the GPU that is present",
                found=", ".join(options.compute_capabilities),
                fix=f"leave them out, or build target {RTX}",
            )
        self._gpu = driver.gpu
        self.variant = gpu_variant(driver.gpu)

    def key(self) -> EngineKey:
        """Return what the plans depend on: this GPU among it."""
        return self._key(self._gpu, {"avg_timing_iterations": str(TIMING_ITERATIONS)})

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Compile one ONNX file and return the path of its plan."""
        trt: Any = self._trt

        def configure(config: trt.IBuilderConfig) -> None:
            config.avg_timing_iterations = TIMING_ITERATIONS
            saved = self._saved_cache(folder)
            cache: trt.ITimingCache | None = config.create_timing_cache(saved)
            if saved and (cache is None or not config.set_timing_cache(cache, ignore_mismatch=False)):
                _log.info("the timing cache in %s is not for this library and GPU; starting with an empty one", folder)
                saved, cache = b"", config.create_timing_cache(b"")
            if not saved:
                config.set_timing_cache(cache, ignore_mismatch=False)

        def keep(config: trt.IBuilderConfig) -> None:
            cache: trt.ITimingCache = config.get_timing_cache()
            write_atomic(folder / self._cache_name, bytes(cache.serialize()))

        return [self._build(name, onnx_path, folder, progress, configure, keep)]

    @property
    def _cache_name(self) -> str:
        return f"timing-{self.variant}-{self.version}.cache"

    def _saved_cache(self, folder: Path) -> bytes:
        """Return the cache of the plans built before in this build, or else of the engines that are being replaced."""
        replaced = folder.with_name(folder.name.removeprefix(".").removesuffix(".partial"))
        for path in (folder / self._cache_name, replaced / self._cache_name):
            if path.is_file():
                return path.read_bytes()
        return b""

    def examine(self, plan: Path) -> Examination:
        """Ask the library's engine inspector."""
        trt: Any = self._trt
        engine: trt.ICudaEngine | None = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(
            plan.read_bytes()
        )
        if engine is None:
            return Examination({}, None)
        layers = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
        names = (layer["Name"] for layer in layers["Layers"])
        return Examination(kernels.by_kind(names), int(engine.device_memory_size_v2))
