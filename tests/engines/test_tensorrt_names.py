"""Every TensorRT name we use exists in TensorRT 11.4 and in TensorRT-RTX 1.7, as we call it.

Nothing is built here: other tests do that, with TensorRT-RTX. This is what vouches for full TensorRT, which cannot
be installed where there is no GPU.
"""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from koala_engines.rtx import RTX_CAPABILITIES
from tests.support.tensorrt_names import Api, api, problems, stub_tensorrt, used_names

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "engines" / "koala_engines", ROOT / "machine" / "koala_machine", ROOT / "runtime" / "koala_runtime")
PREFLIGHT = "runtime/koala_runtime/preflight.py"
HELD_AGAINST = {"engines/koala_engines/tensorrt.py": (0,), "engines/koala_engines/rtx.py": (1,), PREFLIGHT: (1,)}
"""Which of both libraries a source is for, where it is not both."""
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in sorted(folder.rglob("*.py"))
    if re.search(r"\btrt\.\w", path.read_text(encoding="utf-8"))
}

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

def build(path: str, options, backend) -> bytes:
    with options.lock:
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
    if not backend.ahead_of_time:
        config.remote_auto_tuning_config = ""
    cache: trt.ITimingCache | None = None
    if hasattr(config, "remote_auto_tuning_config"):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    return bytes(plan)

def save(cache: "trt.ITimingCache | None") -> bytes:
    return bytes(cache.serialize())

def validity(runtime: "trt.Runtime", plan: bytes):
    if not hasattr(runtime, "get_engine_validity"):
        return None
    header = runtime.engine_header_size
    return runtime.get_engine_validity(plan[:header])

class Session:
    engine: "trt.ICudaEngine"
    saved: "trt.IRuntimeCache | None"

    def __init__(self, plan: bytes, *names: str) -> None:
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = runtime.deserialize_cuda_engine(plan)
        settings = self.engine.create_runtime_config()
        graphs = getattr(settings, "cuda_graph_strategy", None)
        self._context = self.engine.create_execution_context(runtime_config=settings)
        self.num_layers = len(names)
        for name in names:
            self._context.set_tensor_address(name, 0)

    def run(self, stream: int, *shape: int) -> bool:
        self._context.set_input_shape("sample", *shape)
        capturable = not hasattr(self._context, "is_stream_capturable") or (
            self._context.is_stream_capturable(stream)
        )
        return capturable and self._context.execute_async_v3(stream_handle=stream)
"""

# A part of the sample, what to put in its place, and what must be said of that.
TRT, RTX = "tensorrt 11.4", "tensorrt_rtx 1.7"
WRONG = [
    ("BuilderFlag.REFIT)", "BuilderFlag.FP16)", "trt.BuilderFlag.FP16: BuilderFlag has no such member in"),
    (
        "create_network(0)",
        "create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))",
        "NetworkDefinitionCreationFlag has no such member in",
    ),
    ("trt.Builder(trt", "trt.Bilder(trt", "trt.Bilder: the module has no such member in"),
    ("optimization_level", "optimisation_level", "IBuilderConfig has no such member in"),
    ("build_serialized_network", "build_engine", "builder.build_engine: Builder has no such member in"),
    ("pool_size=", "size=", "IBuilderConfig.set_memory_pool_limit takes (pool, pool_size) in"),
    ("_network(network, config)", "_network(network)", "Builder.build_serialized_network takes (network, config)"),
    ("create_timing_cache(b", "create_timing_cache(0, b", f"takes (serialized_timing_cache) in {TRT}"),
    ("trt.Logger()", "trt.Logger(1, 2)", "Logger.__init__ takes (min_severity) in"),
    ("get_error(i).desc", "get_error(i).text", "ParserError has no such member in"),
    ("builder.create_builder_config()", "trt.IBuilderConfig()", "IBuilderConfig.__init__ takes no call in"),
    ("cache.serialize", "cache.serialise", "cache.serialise: ITimingCache has no such member in"),
    ("parser.num_errors", "len(parser.errors)", "parser.errors: OnnxParser has no such member in"),
    ("config.progress_monitor =", "network.num_inputs =", "INetworkDefinition does not let it be assigned in"),
    ('"trt.ICudaEngine"', '"trt.IEngine"', "trt.IEngine: the module has no such member in"),
    ("set_tensor_address(name, 0)", "set_binding(name, 0)", "IExecutionContext has no such member in"),
    ("runtime_config=", "config=", "ICudaEngine.create_execution_context takes (strategy) or (runtime_config) in"),
    ("def phase_start", "def phase_begin", "Monitor.phase_begin: IProgressMonitor has no such method in"),
    ("def phase_start", "def _start", "Monitor: IProgressMonitor calls its phase_start, which is missing, in"),
    ("step: int)", "step: int, of: int)", "IProgressMonitor calls it with (self, phase_name, step) in"),
    ('"get_engine_validity"', '"engine_validity"', f"Runtime has no such member in {TRT} or {RTX}"),
    ('"cuda_graph_strategy"', '"graph_strategy"', f"IRuntimeConfig has no such member in {TRT} or {RTX}"),
    ('"trt.IRuntimeCache | None"', '"trt.ICache | None"', f"the module has no such member in {TRT} or {RTX}"),
    ("trt.ComputeCapability.SM89", "trt.ComputeCapability.SM90", f"ComputeCapability has no such member in {RTX}"),
    ("remote_auto_tuning_config", "remote_tuning", f"IBuilderConfig has no such member in {TRT}"),
    ('if hasattr(config, "num_compute_capabilities")', "if options", f"IBuilderConfig has no such member in {TRT}"),
    ("if not backend.ahead_of_time", "if options", f"IBuilderConfig has no such member in {RTX}"),
    ('network: "trt.INetworkDefinition"', "network: trt.INetwork", f"the module has no such member in {TRT} or {RTX}"),
    (
        'runtime: "trt.Runtime"',
        "runtime",
        f"runtime.get_engine_validity: annotate runtime, its class is not known in {RTX}",
    ),
    ("builder = trt.Builder(trt.Logger())", "builder = make()", "builder.create_network: annotate builder"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[Api]:
    """Both libraries; skips, with the reason, where they cannot be read."""
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("the hollow TensorRT libraries need a C compiler (cc or gcc)")
    for module in ("tensorrt_bindings", "tensorrt_rtx"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed; `pip install -e .[dev,rtx]`")
    env = stub_tensorrt(tmp_path_factory.mktemp("hollow"))
    return [api("tensorrt_bindings", env), api("tensorrt_rtx", env)]


def test_both_libraries_are_read(libraries: list[Api]) -> None:
    assert [library["name"] for library in libraries] == [TRT, RTX]
    for library in libraries:
        assert len(library["classes"]) > 190
        assert library["classes"]["BuilderFlag"]["REFIT"] == ["value", "BuilderFlag"]
        assert library["classes"]["IBuilderConfig"]["max_aux_streams"] == ["property", "int"]
        assert len(library["classes"]["Runtime"]["deserialize_cuda_engine"]) > 2  # two overloads


def test_correct_source_is_clean_and_followed_throughout(libraries: list[Api]) -> None:
    assert problems(CORRECT, *libraries) == []
    used = [used_names(CORRECT, library) for library in libraries]
    deep = {"ParserError.desc", "IExecutionContext.set_tensor_address", "ITimingCache", "MemoryPoolType.WORKSPACE"}
    assert all(deep <= names for names in used)
    assert "IBuilderConfig.remote_auto_tuning_config" in used[0] - used[1]
    assert {"Runtime.get_engine_validity", "IExecutionContext.is_stream_capturable"} <= used[1] - used[0]


@pytest.mark.parametrize(("right", "wrong", "said"), WRONG, ids=[wrong for _, wrong, _ in WRONG])
def test_wrong_source_is_reported(libraries: list[Api], right: str, wrong: str, said: str) -> None:
    assert right in CORRECT
    found = problems(CORRECT.replace(right, wrong), *libraries)
    assert any(said in sentence for sentence in found), found
    for label in (TRT, RTX) if said.endswith(" in") else ():  # nothing that only one library notices
        assert any(sentence.endswith(label) for sentence in found), found


def test_sources_are_found() -> None:
    names = {f"engines/koala_engines/{name}.py" for name in ("trt_builder", "tensorrt", "rtx", "progress")}
    others = {"machine/koala_machine/tensorrt.py", "runtime/koala_runtime/devices/tensorrt.py", PREFLIGHT}
    others |= {"runtime/koala_runtime/devices/tensorrt_memory.py"}
    assert names | others == SOURCES.keys()


@pytest.mark.parametrize("path", SOURCES)
def test_our_names_exist_in_their_libraries(libraries: list[Api], path: str) -> None:
    chosen = [libraries[index] for index in HELD_AGAINST.get(path, (0, 1))]
    assert problems(SOURCES[path], *chosen) == []


def test_our_builder_is_followed(libraries: list[Api]) -> None:
    """Guards the checker: code rewritten so that it loses the types would pass unread."""
    for library in libraries:
        used = set().union(*(used_names(source, library) for source in SOURCES.values()))
        assert {
            "Builder.build_serialized_network",
            "IBuilderConfig.progress_monitor",
            "OnnxParser.parse_from_file",
        } <= used


def test_compute_capabilities_exist(libraries: list[Api]) -> None:
    """These names are looked up at run time, where the checker does not see them."""
    offered = {key for key, (kind, *_) in libraries[1]["classes"]["ComputeCapability"].items() if kind == "value"}
    assert set(RTX_CAPABILITIES.values()) == {name for name in offered if name.startswith("SM")}
