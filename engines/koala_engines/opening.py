"""From a target to its compiler: one function per library."""

from __future__ import annotations

from collections.abc import Callable

from koala_bundle.targets import CPU, RTX, TENSORRT, Target
from koala_engines.compiler import Compiler
from koala_engines.options import BuildOptions


def open_compiler(target: Target, options: BuildOptions) -> Compiler:
    """Import the compiler of ``target``.

    Raises TargetError with what is missing on this machine, ArgumentError for options it cannot follow.
    """
    return _COMPILERS[target.name](options)


def _cpu(options: BuildOptions) -> Compiler:
    from koala_engines.cpu import CpuCompiler

    return CpuCompiler()


def _rtx(options: BuildOptions) -> Compiler:
    from koala_engines.rtx import RtxCompiler

    return RtxCompiler(options)


def _tensorrt(options: BuildOptions) -> Compiler:
    from koala_engines.tensorrt import TensorRTCompiler

    return TensorRTCompiler(options)


_COMPILERS: dict[str, Callable[[BuildOptions], Compiler]] = {
    CPU.name: _cpu,
    RTX.name: _rtx,
    TENSORRT.name: _tensorrt,
}
