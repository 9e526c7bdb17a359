"""Every TensorRT name we use exists in TensorRT 11.4 and in TensorRT-RTX 1.7, as we call it.

Nothing is built here: the engines' own tests do that, with TensorRT-RTX. This is what vouches for
full TensorRT where it cannot be installed.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest

from support.tensorrt_names import Api, api, problems, stub_tensorrt, used_names

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    path
    for folder in ("engines/koala_engines", "runtime/koala_runtime")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "trt." in path.read_text()
]

CORRECT = """
import logging

class Monitor(trt.IProgressMonitor):
    def __init__(self) -> None:
        super().__init__()
        self.events = []
    def phase_start(self, name, parent, steps): self.events.append(name)
    def step_complete(self, name: str, step: int) -> bool: return True
    def phase_finish(self, *args): pass

def parse(network: "trt.INetworkDefinition", path: str, logger: logging.Logger) -> None:
    parser = trt.OnnxParser(network, trt.Logger(min_severity=trt.Logger.WARNING))
    if not parser.parse_from_file(path):
        raise ValueError([parser.get_error(i).desc() for i in range(parser.num_errors)])

def build(path: str, options) -> bytes:
    builder = trt.Builder(trt.Logger())
    network = builder.create_network(0)
    parse(network, path, logging.getLogger())
    config = builder.create_builder_config()
    config.progress_monitor = Monitor()
    config.builder_optimization_level = options.level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, pool_size=1 << 30)
    config.set_flag(trt.BuilderFlag.REFIT)
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    else:
        config.remote_auto_tuning_config = ""
    cache: trt.ITimingCache | None = None
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    profile = builder.create_optimization_profile()
    profile.set_shape("sample", min=(1,), opt=(1,), max=(1,))
    shape = network.get_input(0).shape
    plan = builder.build_serialized_network(network, config)
    return bytes(plan)

def validity(runtime: "trt.Runtime", plan: bytes):
    if not hasattr(runtime, "get_engine_validity"):
        return None
    header = runtime.engine_header_size
    return runtime.get_engine_validity(plan[:header])

class Session:
    engine: "trt.ICudaEngine"

    def __init__(self, plan: bytes, *names: str) -> None:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = runtime.deserialize_cuda_engine(plan)
        settings = self.engine.create_runtime_config()
        graphs = getattr(settings, "cuda_graph_strategy", None)
        self._context = self.engine.create_execution_context(runtime_config=settings)
        for name in names:
            self._context.set_tensor_address(name, 0)

    def run(self, stream: int, *shape: int) -> bool:
        self._context.set_input_shape("sample", *shape)
        capturable = not hasattr(self._context, "is_stream_capturable") or (
            self._context.is_stream_capturable(stream)
        )
        return capturable and self._context.execute_async_v3(stream_handle=stream)
"""

# One line of the sample, what to make of it, and what must be said: {} is a library and its version.
WRONG = {
    "enum member": (
        "BuilderFlag.REFIT",
        "BuilderFlag.REFITT",
        "trt.BuilderFlag.REFITT: BuilderFlag has no such member in {}",
    ),
}
