"""The ``cuda`` target: ONNX Runtime's CUDA provider on our memory and stream, for GPUs without TensorRT.

A run of a session may allocate, and waits for the stream at its end, neither of which a capture allows; the provider's
own capture would be of one session, on addresses that never change. So a picture runs in parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from koala_bundle.errors import TargetError
from koala_bundle.targets import CPU, CUDA
from koala_machine.support import install_command
from koala_runtime.devices.base import HostGraphs
from koala_runtime.devices.cpu import OrtEngine
from koala_runtime.devices.cuda import CudaDevice

PROVIDER = "CUDAExecutionProvider"


class UncapturedCudaDevice(HostGraphs, CudaDevice):
    """A GPU on which a graph is the list of its work."""


def provider_options(stream: int, index: int) -> dict[str, str]:
    """Return the CUDA provider's options: our GPU and stream, channels-last, and no more memory than asked for.

    By default its memory grows by powers of two, to nearly twice of what a model takes.
    """
    return {
        "device_id": str(index),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "prefer_nhwc": "1",
    }


def load_on_gpu(path: Path, device: CudaDevice, index: int) -> OrtEngine:
    """Load an ONNX file on the GPU ``device``, numbered ``index``, to run on its stream.

    Raises TargetError where ONNX Runtime would silently run it on the processor, BundleError for a damaged file.
    """
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN in the packages that the extra `cuda` installs
        ort.preload_dlls()
    providers: list[Any] = [(PROVIDER, provider_options(device.stream, index)), "CPUExecutionProvider"]
    engine = OrtEngine(path, providers, "cuda", index, device.wait)
    if engine.providers[0] != PROVIDER:
        engine.close()
        raise TargetError(
            f"target {CUDA}",
            expected="ONNX Runtime's CUDA provider",
            found="that it does not load: CUDA or cuDNN is missing, or of another version",
            fix=f"install them with {install_command(CUDA)}, or run target {CPU}",
        )
    return engine
