"""What ``tensorrt`` and ``rtx`` share: one strongly typed network per component to one serialized plan.

The two libraries offer nearly the same Python API. Shapes are static in the ONNX files, so the optimization profile is
implied (min = opt = max) and none is added.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from koala_bundle.engine_record import GPU, EngineKey
from koala_bundle.errors import ArgumentError, BuildError, TargetError
from koala_bundle.files import require_space
from koala_bundle.manifest import ComponentEntry
from koala_bundle.targets import Target
from koala_engines import kernels
from koala_engines.options import BuildOptions
from koala_engines.progress import deferred_interrupt, make_monitor
from koala_machine.driver import query_driver
from koala_machine.support import check_driver
from koala_machine.tensorrt import make_logger, open_tensorrt

DEFAULT_OPTIMIZATION_LEVEL = 3  # TensorRT's own default
LONGEST_SEARCH = 5


class TrtBuilder:
    """What both libraries share; a subclass says what its plans are tied to."""

    variant: str

    def __init__(self, target: Target, options: BuildOptions) -> None:
        self.target, self._options = target, options
        self._trt: Any = open_tensorrt(target)
        level = options.optimization_level
        if level is not None and not 0 <= level <= LONGEST_SEARCH:
            raise ArgumentError(
                "optimization_level", expected="0 to 5", found=str(level), fix="pass 5 for the longest search"
            )
        if options.tune < 0:
            raise ArgumentError("tune", expected="a number of builds", found=str(options.tune), fix="pass 3 or so")
        default = LONGEST_SEARCH if options.tune else DEFAULT_OPTIMIZATION_LEVEL
        self._level = default if level is None else level

    @property
    def version(self) -> str:
        """Version of the compiler; plans load only in the very same."""
        return str(self._trt.__version__)

    def losses(self, entry: ComponentEntry, precision: str, kernels_of_plan: dict[str, int]) -> list[str]:
        """Return what the compiler should have kept and did not."""
        return kernels.losses(entry, precision, kernels_of_plan)

    def _key(self, gpu: GPU | None, choices: dict[str, str]) -> EngineKey:
        choices |= {"builder_optimization_level": str(self._level), "max_aux_streams": "0"}
        if self._options.tune:
            choices |= {"tiling_optimization_level": "FULL", "tune": str(self._options.tune)}
        return EngineKey(self.target.library, self.version, _this_platform(), gpu, choices)

    def _build(
        self,
        name: str,
        onnx_path: Path,
        folder: Path,
        progress: Callable[[float], None],
        configure: Callable[[Any], None],
        keep: Callable[[Any], None] = lambda config: None,
    ) -> Path:
        """Build one plan; ``configure`` completes the library's builder configuration, ``keep`` sees it afterwards."""
        trt: Any = self._trt
        logger, errors = make_logger(trt)
        with deferred_interrupt() as interrupted:
            builder: trt.Builder = self._builder(logger, errors)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, logger)
            if not parser.parse_from_file(str(onnx_path)):
                problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
                raise self._refused(name, "parse", [*errors, *problems[:1]])
            config = builder.create_builder_config()
            config.builder_optimization_level = self._level
            if self._options.tune:
                config.tiling_optimization_level = trt.TilingOptimizationLevel.FULL
            # All of a picture's work is captured on one stream; side streams would only add forks and joins to it.
            config.max_aux_streams = 0
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            configure(config)
            require_space(folder, onnx_path.with_name(f"{onnx_path.name}.data").stat().st_size)
            config.progress_monitor = make_monitor(trt, progress, interrupted)
            plan = builder.build_serialized_network(network, config)
            if interrupted():
                raise KeyboardInterrupt
            if plan is None:
                raise self._refused(name, "build", errors)
        path = folder / f"{name}.plan"
        with path.open("wb") as stream:
            stream.write(plan)
        keep(config)
        return path

    def _builder(self, logger: Any, errors: list[str]) -> Any:
        """Return the library's builder. Raises TargetError where it makes none, which it says by a TypeError."""
        try:
            return self._trt.Builder(logger)
        except TypeError as error:
            check_driver(self.target, query_driver(device=self._options.device or 0))
            raise TargetError(
                f"target {self.target}",
                expected=f"a builder of {self.target.library} {self.version}",
                found=_last(errors or [str(error)]),
                fix="update the NVIDIA driver; `koala doctor` shows what this machine has",
            ) from error

    def _refused(self, name: str, verb: str, errors: list[str]) -> BuildError:
        return BuildError(
            f"{self.target}: {name}",
            expected=f"a component that {self.target.library} {self.version} can {verb}",
            found=_last(errors),
            fix="check free memory, or report the checkpoint's config.json with `koala doctor`",
        )


def _last(complaints: list[str]) -> str:
    """Return the library's last complaint: earlier ones may be about what it could do without, such as a cache."""
    return complaints[-1].strip().rstrip(".") if complaints else "a refusal without a reason"


def _this_platform() -> str:
    """Operating system and processor, as in ``linux-x86_64``."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{'x86_64' if machine == 'amd64' else machine}"
