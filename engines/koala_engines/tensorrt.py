"""The ``tensorrt`` target: TensorRT tunes on the GPU that is present, and keeps a timing cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_bundle.engine_record import EngineKey
from koala_bundle.errors import ArgumentError, TargetError
from koala_bundle.files import write_atomic
from koala_bundle.manifest import Manifest
from koala_bundle.targets import RTX, TENSORRT
from koala_engines import kernels
from koala_engines.compiler import Examination
from koala_engines.options import BuildOptions
from koala_engines.trt_builder import TrtBuilder
from koala_machine.driver import query_driver

TENSORRT_MAJOR = 11
TIMING_CACHE = "timing.cache"


class TensorRTCompiler(TrtBuilder):
    """TensorRT: plans for the GPU of this machine. Raises TargetError where there is none."""

    def __init__(self, options: BuildOptions) -> None:
        super().__init__(TENSORRT, options)
        if int(self.version.split(".")[0]) != TENSORRT_MAJOR:
            raise TargetError(
                f"target {TENSORRT}",
                expected=f"TensorRT {TENSORRT_MAJOR}",
                found=self.version,
                fix=f"install it with `{TENSORRT.install}`",
            )
        driver = query_driver()
        if driver.gpu is None:
            raise TargetError(
                f"target {TENSORRT}",
                expected="the NVIDIA GPU that the plans are for",
                found=str(driver.problem),
                fix="build on the machine that will run them, or build target rtx, which needs no GPU",
            )
        if options.compute_capabilities:
            raise ArgumentError(
                "compute_capabilities",
                expected=f"none for target {TENSORRT}, which builds for the GPU that is present",
                found=", ".join(options.compute_capabilities),
                fix=f"leave them out, or build target {RTX}",
            )
        self._gpu = driver.gpu

    def key(self, manifest: Manifest) -> EngineKey:
        """Return what the plans depend on: this GPU among it."""
        return self._key(manifest, self._gpu, {})

    def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
        """Compile one ONNX file and return the path of its plan."""
        trt: Any = self._trt

        def configure(config: trt.IBuilderConfig) -> None:
            config.set_timing_cache(config.create_timing_cache(_timing_cache(folder)), ignore_mismatch=False)

        def keep(config: trt.IBuilderConfig) -> None:
            cache: trt.ITimingCache = config.get_timing_cache()
            write_atomic(folder / TIMING_CACHE, bytes(cache.serialize()))

        return [self._build(name, onnx_path, folder, progress, configure, keep)]

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


def _timing_cache(folder: Path) -> bytes:
    """Return the cache of the plans built before in this build, or else of the engines that are being replaced."""
    cache = folder / TIMING_CACHE
    if not cache.is_file():
        old = folder.with_name(folder.name.removeprefix(".").removesuffix(".partial")) / TIMING_CACHE
        if not old.is_file():
            return b""
        shutil.copyfile(old, cache)
    return cache.read_bytes()
