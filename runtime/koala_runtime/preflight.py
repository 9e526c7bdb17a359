"""Whether this machine can run a target and its plans, found out before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, Target
from koala_machine.driver import Driver, query_driver
from koala_machine.support import check_driver, check_gpu, install_command
from koala_machine.tensorrt import make_logger, open_tensorrt


def obstacle(target: Target, device: int | str = 0) -> str | None:
    """Return why this machine cannot run plans of ``target`` on the GPU ``device``, in words; None if it can."""
    driver = query_driver(device=device)
    try:
        check_machine(target, driver)
        if target.needs_gpu:
            from koala_runtime.devices.cuda import open_driver

            open_driver()
    except TargetError as error:
        return error.reason
    return None


def check_machine(target: Target, driver: Driver) -> None:
    """Raise TargetError unless the GPU, its driver and the installed packages are what ``target`` needs."""
    check_hardware(target, driver)
    if target.needs_gpu:
        check_driver(target, driver)
    if find_spec(target.library) is None:
        raise TargetError(
            f"target {target}",
            expected=f"the Python package {target.library}",
            found="none",
            fix=f"install it with {install_command(target, driver)}",
        )
    if target.needs_gpu:
        check_provider(open_tensorrt(target), target)


def check_provider(library: Any, target: Target) -> None:
    """Raise TargetError if ``library`` is an ONNX Runtime that was built without CUDA."""
    if hasattr(library, "get_available_providers") and "CUDAExecutionProvider" not in library.get_available_providers():
        raise TargetError(
            f"target {target}",
            expected="ONNX Runtime with its CUDA provider",
            found="the package onnxruntime, which has none",
            fix=f"uninstall onnxruntime, then {install_command(target)}",
        )


def check_hardware(target: Target, driver: Driver) -> None:
    """Raise TargetError unless there is a GPU that ``target`` runs on, or it needs none."""
    if not target.needs_gpu:
        return
    if driver.gpu is None:
        raise TargetError(
            f"target {target}", expected="an NVIDIA GPU", found=str(driver.problem), fix=f"run target {CPU}"
        )
    check_gpu(target, driver.gpu)


def check_plan(trt: Any, plan: Path) -> None:
    """Ask TensorRT-RTX whether it can run ``plan`` here; TensorRT cannot be asked. Raises TargetError if not.

    Reads the first bytes only. It has no diagnosis where it cannot see the GPU; then loading the plan will say more.
    """
    logger, _ = make_logger(trt)
    runtime: trt.Runtime = trt.Runtime(logger)
    with plan.open("rb") as stream:
        header = stream.read(int(runtime.engine_header_size))
    validity, diagnostics = runtime.get_engine_validity(header)
    if validity != trt.EngineValidity.INVALID or not int(diagnostics):
        return
    reasons = {
        trt.EngineInvalidityDiagnostics.VERSION_MISMATCH: "plans of another version of the library",
        trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC: "plans for GPUs of another compute capability",
        trt.EngineInvalidityDiagnostics.OLD_CUDA_DRIVER: "an NVIDIA driver that is too old for them",
        trt.EngineInvalidityDiagnostics.OLD_CUDA_RUNTIME: "a CUDA runtime that is too old for them",
        trt.EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY: "too little GPU memory for them",
        trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE: "damaged plans",
        trt.EngineInvalidityDiagnostics.CUDA_ERROR: "a CUDA error",
    }
    found = [words for bit, words in reasons.items() if int(bit) & int(diagnostics)]
    raise TargetError(
        str(plan),
        expected="a plan that TensorRT-RTX can run on this GPU",
        found=" and ".join(found) or f"diagnostics {int(diagnostics)}",
        fix=f"build the engines again on this machine, or run target {CPU}",
    )
