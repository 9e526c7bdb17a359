"""From a target to its compiler: one function per library."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA, RTX, TENSORRT, Target
from koala_engines.compiler import Compiler
from koala_engines.options import BuildOptions
from koala_machine.support import install_command


def open_compiler(target: Target, options: BuildOptions) -> Compiler:
    """Import the compiler of ``target``.

    Raises TargetError with what is missing on this machine, ArgumentError for options it cannot follow.
    """
    _require(target, "onnx", "`pip install koala-trt[export]`")
    return _COMPILERS[target.name](options)


def _require(target: Target, package: str, install: str) -> None:
    if find_spec(package) is None:
        raise TargetError(
            f"target {target}",
            expected=f"the Python package {package}",
            found="none",
            fix=f"install it with {install}",
        )


def _cpu(options: BuildOptions) -> Compiler:
    _require(CPU, CPU.library, install_command(CPU))
    from koala_engines.cpu import CpuCompiler

    return CpuCompiler()


def _cuda(options: BuildOptions) -> Compiler:
    from koala_engines.cuda import CudaCompiler

    return CudaCompiler()


def _rtx(options: BuildOptions) -> Compiler:
    from koala_engines.rtx import RtxCompiler

    return RtxCompiler(options)


def _tensorrt(options: BuildOptions) -> Compiler:
    from koala_engines.tensorrt import TensorRTCompiler

    return TensorRTCompiler(options)


_COMPILERS: dict[str, Callable[[BuildOptions], Compiler]] = {
    CPU.name: _cpu,
    CUDA.name: _cuda,
    RTX.name: _rtx,
    TENSORRT.name: _tensorrt,
}
