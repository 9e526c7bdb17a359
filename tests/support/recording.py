"""TensorRT-RTX's compiler with a record of what it is asked, and machines to build on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.fleet import RTX_2080_TI, RTX_4090, Machine

ADA = Machine((RTX_4090,))
TURING_GPU = Machine((RTX_2080_TI,))
NO_GPU = Machine((), cuda=None)


def nothing(_: float) -> None:
    pass


def library(**members: Any) -> ModuleType:
    """A stand-in for TensorRT's Python module."""
    module = ModuleType("a_library")
    vars(module).update(members)
    return module


class Recording:
    """The real TensorRT-RTX, but that it shows the configuration with which a plan is built."""

    def __init__(self) -> None:
        self.real = pytest.importorskip("tensorrt_rtx")
        self.seen: list[dict[str, Any]] = []

    def Builder(self, logger: Any) -> RecordingBuilder:
        return RecordingBuilder(self.real, self.real.Builder(logger), self.seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class RecordingBuilder:
    def __init__(self, trt: Any, real: Any, seen: list[dict[str, Any]]) -> None:
        self._trt, self._real, self._seen = trt, real, seen
        self.create_network = real.create_network
        self.create_builder_config = real.create_builder_config

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        self._seen.append(
            {
                "user allocation": config.get_flag(self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION),
                "capabilities": config.num_compute_capabilities,
                "level": config.builder_optimization_level,
                "tiling": config.tiling_optimization_level,
            }
        )
        return self._real.build_serialized_network(network, config)


def components(bundle: Path) -> list[str]:
    return [entry["name"] for entry in json.loads((bundle / "manifest.json").read_text())["components"]]
