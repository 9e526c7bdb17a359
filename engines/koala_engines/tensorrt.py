"""The ``tensorrt`` and ``rtx`` targets: one strongly typed network per component to one serialized plan.

Shapes are static in the ONNX files, so the optimization profile is implied (min = opt = max) and none is added.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_engines.backend import RTX_CAPABILITIES, Backend, check_capabilities, open_backend, this_platform
from koala_engines.kernels import of_plan
from koala_engines.options import BuildOptions
from koala_engines.progress import deferred_interrupt, make_logger, make_monitor
from koala_bundle.errors import ArgumentError, BuildError
from koala_bundle.files import require_space, write_atomic
from koala_bundle.manifest import EngineKey, Manifest

TIMING_CACHE = "timing.cache"
DEFAULT_OPTIMIZATION_LEVEL = 3  # TensorRT's own default


def engine_key(target: str, manifest: Manifest, options: BuildOptions) -> EngineKey:
    """Everything the plans depend on. Raises TargetError or ArgumentError if they cannot be built here."""
    backend = open_backend(target)
    level = DEFAULT_OPTIMIZATION_LEVEL if options.optimization_level is None else options.optimization_level
    if not 0 <= level <= 5:
        raise ArgumentError(
            "--optimization-level", expected="0 to 5", found=str(level), fix="pass 5 for the longest search"
        )
    choices = {"builder_optimization_level": str(level), "max_aux_streams": "0"}
    if backend.ahead_of_time:
        check_capabilities(options.compute_capabilities)
        choices["compute_capabilities"] = ",".join(sorted(options.compute_capabilities)) or "all"
    elif options.compute_capabilities:
        raise ArgumentError(
            "--compute-capability",
            expected="only together with --target rtx",
            found=f"--target {target}",
            fix="leave it out: TensorRT builds for the GPU that is present",
        )
    return EngineKey(backend.compiler, backend.version, this_platform(), backend.gpu, choices, manifest.onnx_digests())


def build_plan(
    target: str, name: str, onnx_path: Path, folder: Path, options: BuildOptions, progress: Callable[[float], None]
) -> list[Path]:
    """Compile one ONNX file and return the path of its plan. Raises BuildError with the compiler's own reason."""
    backend = open_backend(target)
    trt: Any = backend.trt
    logger, complaints = make_logger(trt)
    with deferred_interrupt() as interrupted:
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx_path)):
            problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise _refused(backend, name, "parse", [*problems, *complaints])
        config = builder.create_builder_config()
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        # All of a picture's work is captured on one stream; side streams would only add forks and joins to it.
        config.max_aux_streams = 0
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        cache = None
        if backend.ahead_of_time:
            config.num_compute_capabilities = len(options.compute_capabilities)
            for index, capability in enumerate(options.compute_capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, RTX_CAPABILITIES[capability]), index)
        else:
            cache = config.create_timing_cache(_timing_cache(folder))
            config.set_timing_cache(cache, ignore_mismatch=False)
        require_space(folder, onnx_path.with_name(f"{onnx_path.name}.data").stat().st_size)
        config.progress_monitor = make_monitor(trt, progress, interrupted)
        plan = builder.build_serialized_network(network, config)
        if interrupted():
            raise KeyboardInterrupt
        if plan is None:
            raise _refused(backend, name, "build", complaints)
    path = folder / f"{name}.plan"
    with path.open("wb") as stream:
        stream.write(plan)
    if cache is not None:
        write_atomic(folder / TIMING_CACHE, bytes(cache.serialize()))
    return [path]


def examine(target: str, plan: Path) -> tuple[dict[str, int], int | None]:
    """Return the kernels of a plan by kind, and the scratch bytes of one run where they can be told."""
    return of_plan(open_backend(target), plan)


def _timing_cache(folder: Path) -> bytes:
    """Return the cache of the plans before in this build, or else of the engines that are being replaced."""
    cache = folder / TIMING_CACHE
    if not cache.is_file():
        old = folder.with_name(folder.name.removeprefix(".").removesuffix(".partial")) / TIMING_CACHE
        if not old.is_file():
            return b""
        shutil.copyfile(old, cache)
    return cache.read_bytes()


def _refused(backend: Backend, name: str, verb: str, complaints: list[str]) -> BuildError:
    return BuildError(
        f"{backend.target}: {name}",
        expected=f"a component that {backend.compiler} {backend.version} can {verb}",
        found=complaints[0].strip().rstrip(".") if complaints else "a refusal without a reason",
        fix="check free memory, or report the checkpoint's config.json with `koala doctor`",
    )
