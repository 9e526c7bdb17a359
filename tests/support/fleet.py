"""Machines by their drivers, and compilers that write small plans: what a fleet is, without a GPU or a library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import koala_engines.opening
import koala_machine.support
from koala_bundle.engine_record import GPU, EngineKey
from koala_bundle.files import file_entry, write_sealed
from koala_bundle.manifest import MANIFEST, SCHEMA_VERSION, ComponentEntry, Manifest, Origin, read_manifest
from koala_bundle.spec import Profile, Sampling
from koala_bundle.targets import CPU, RTX, TENSORRT, Target
from koala_bundle.tensors import components
from koala_engines.compiler import Examination
from koala_engines.rtx import RtxCompiler
from koala_engines.tensorrt import TensorRTCompiler
from koala_export.configs import read_spec
from koala_export.presets import PRESETS, configs
from koala_machine.driver import Driver

GB = 10**9
CUDA_13 = ("tensorrt-cu13", "tensorrt-rtx-cu13", "onnxruntime")
CUDA_12 = ("tensorrt-cu12", "tensorrt-rtx-cu12", "onnxruntime")
RTX_3060_TI = ("NVIDIA GeForce RTX 3060 Ti", "8.6", 8 * GB)
RTX_2080_TI = ("NVIDIA GeForce RTX 2080 Ti", "7.5", 11 * GB)
GTX_1080 = ("NVIDIA GeForce GTX 1080", "6.1", 8 * GB)
RTX_4090 = ("NVIDIA GeForce RTX 4090", "8.9", 24 * GB)
A100 = ("NVIDIA A100-SXM4-40GB", "8.0", 40 * GB)
H100 = ("NVIDIA H100 80GB HBM3", "9.0", 80 * GB)
UUIDS = ("GPU-10101010-aaaa", "GPU-20202020-bbbb")
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


@dataclass(frozen=True)
class Machine:
    """GPUs as (name, compute capability, bytes), the CUDA version of the driver, and the wheels that are installed."""

    gpus: tuple[tuple[str, str, int], ...]
    cuda: str | None = "13.0"
    wheels: tuple[str, ...] = CUDA_13

    def query_driver(self, library: str | None = None, *, device: int | str = 0) -> Driver:
        """What the driver of this machine answers."""
        if self.cuda is None:
            return Driver(None, None, 0, "no NVIDIA driver (libcuda.so.1 cannot be loaded)")
        index = UUIDS.index(device) if device in UUIDS else int(device)
        if index >= len(self.gpus):
            return Driver(self.cuda, None, 0, f"{len(self.gpus)} in all, numbered from 0")
        name, capability, memory = self.gpus[index]
        return Driver(self.cuda, GPU(name, capability), memory, None, index)

    def query_uuid(self, library: str | None = None, *, device: int | str = 0) -> str | None:
        """The UUID of a GPU of this machine."""
        driver = self.query_driver(device=device)
        return UUIDS[driver.ordinal] if driver.gpu else None

    def distribution(self, name: str) -> SimpleNamespace:
        """Stand in for importlib.metadata's."""
        if name not in self.wheels:
            raise PackageNotFoundError(name)
        return SimpleNamespace(version="1.2.3")


def be(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    """Make this process see ``machine``, and modules in the place of TensorRT's libraries."""
    for name, module in [*sys.modules.items()]:
        for function in ("query_driver", "query_uuid"):
            if name.startswith("koala_") and hasattr(module, function):
                patch.setattr(module, function, getattr(machine, function))
    patch.setattr(koala_machine.support, "distribution", machine.distribution)
    if machine.cuda:
        patch.setattr("koala_runtime.devices.cuda.open_driver", lambda: None)
    for name, version in VERSIONS.items():
        if not any(wheel.startswith(f"{name.replace('_', '-')}-cu") for wheel in machine.wheels):
            patch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
            continue
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__version__ = version  # type: ignore[attr-defined]
        patch.setitem(sys.modules, name, module)


class Compiled:
    """Which components were compiled, as "target variant component"; a stand-in for three compilers."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log = self.log

        class Fake:
            target: Target
            variant: str

            def build(self, name: str, onnx_path: Path, folder: Path, progress: Callable[[float], None]) -> list[Path]:
                log.append(f"{self.target} {self.variant} {name}".replace("  ", " "))
                plan = folder / f"{name}.plan"
                plan.write_bytes(
                    onnx_text(f"{self.target} {self.variant} {name} {len(log)} of {onnx_path.read_text()}")
                )
                return [plan]

            def examine(self, plan: Path) -> Examination:
                return Examination({}, 1000)

            def losses(self, entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
                return []

        class FakeTensorRT(Fake, TensorRTCompiler):
            pass

        class FakeRtx(Fake, RtxCompiler):
            pass

        class FakeCpu(Fake):
            target, variant = CPU, ""

            def key(self) -> EngineKey:
                return EngineKey("onnxruntime", "1.31", "any", None, {})

        makers = {TENSORRT: FakeTensorRT, RTX: FakeRtx, CPU: lambda options: FakeCpu()}
        for target, make in makers.items():
            patch.setitem(koala_engines.opening._COMPILERS, target.name, make)  # type: ignore[arg-type]

    def since(self) -> list[str]:
        """What was compiled since the last question."""
        log, self.log[:] = [*self.log], []
        return log


TOKENIZER = '{"model": {"type": "BPE"}, "truncation": {"max_length": 77}, "padding": {"strategy": {"Fixed": 77}}}'
"""As little as passes for a tokenizer of CLIP's kind before it is loaded."""


def onnx_text(text: str) -> bytes:
    """Return an ONNX file that holds a text, as the name of its producer, and nothing else."""
    return bytes([2 << 3 | 2, len(text)]) + text.encode()


def make_bundle(path: Path) -> Path:
    """Write a bundle whose ONNX files hold short texts; its manifest is like that of a real one."""
    spec, profile = read_spec(configs(PRESETS["koala-700m"])), Profile(64, 64, 1, "fp16")
    entries, files = [], {}
    (path / "onnx").mkdir(parents=True)
    for component in components(spec, profile):
        name = f"onnx/{component.name}.onnx"
        (path / name).write_bytes(onnx_text(component.name))
        files[name] = file_entry(path / name)
        entries.append(ComponentEntry(component.name, component.inputs, component.outputs, 0, (name,)))
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (path / tokenizer).mkdir()
        (path / tokenizer / "tokenizer.json").write_text(TOKENIZER)
        files[f"{tokenizer}/tokenizer.json"] = file_entry(path / tokenizer / "tokenizer.json")
    manifest = Manifest(
        SCHEMA_VERSION,
        Origin("ab", {}),
        "skipped",
        spec,
        profile,
        Sampling(4, 3.5),
        (),
        {},
        (),
        tuple(entries),
        files,
    )
    write_sealed(path / MANIFEST, manifest)
    return path


def change_component(bundle: Path, name: str) -> None:
    """Give a component another ONNX file, as an export of other weights would."""
    path = f"onnx/{name}.onnx"
    (bundle / path).write_bytes(onnx_text(f"{name}, changed"))
    data = json.loads((bundle / MANIFEST).read_text())
    entry = file_entry(bundle / path)
    data["files"][path] = {"sha256": entry.sha256, "size": entry.size}
    write_sealed(bundle / MANIFEST, data)
    assert read_manifest(bundle).files[path] == entry
