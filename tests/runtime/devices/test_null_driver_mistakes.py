"""Mistakes in the runtime's code for GPUs, made on purpose, show on the null driver."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.nulldriver import changes, scenarios
from tests.support.nulldriver.scenarios import SAMPLED, WAYS, Seen

OnNullDriver = Callable[..., Any]


@pytest.fixture(scope="module")
def unchanged(on_null_driver: OnNullDriver, null_bundle: Path) -> Callable[[str], Seen]:
    """Return a function from a way to draw to what is seen of it."""
    return cache(partial(on_null_driver, scenarios.draw, null_bundle))


CUDA, TENSORRT = "koala_runtime.devices.cuda", "koala_runtime.devices.tensorrt"
EXECUTOR, RUN, MACHINE = "koala_runtime.executor", "koala_runtime.run", "koala_machine.tensorrt"
PROGRAM, INPUTS, PIPELINE = "koala_runtime.program", "koala_runtime.inputs", "koala_runtime.pipeline"
NEXT, ROW = "NEXT_HISTORY: history[i + 1]}", ".row(step, t.shape)"
COPY_IN = "array.ctypes.data, array.nbytes, self.stream)\n\n    def copy_out"
MISTAKES = {
    "no run before the capture": (
        "plain",
        RUN,
        "if key in self._seen else None",
        "",
    ),
    "no wait": ("plain", CUDA, '        self._do("cuEventSynchronize", self._done)', "        pass"),
    "a wait for what was before": ("plain", CUDA, '        self._do("cuEventRecord", self._done, self.stream)\n', ""),
    "a launch on another stream": ("plain", CUDA, '"cuGraphLaunch", graph, self.stream', '"cuGraphLaunch", graph, 0'),
    "a wait during capture": ("plain", CUDA, COPY_IN, COPY_IN.replace("\n\n", "\n        self.wait()\n\n", 1)),
    "memory allocated during capture": (
        "plain",
        CUDA,
        COPY_IN,
        COPY_IN.replace("\n\n", "\n        self.release(self.allocate(256))\n\n", 1),
    ),
    "a copy that is too long": ("plain", CUDA, COPY_IN, COPY_IN.replace("nbytes", "nbytes + 256", 1)),
    "a copy the wrong way": ("plain", CUDA, '"cuMemcpyHtoDAsync", address', '"cuMemcpyDtoHAsync", address'),
    "memory that is not pinned": (
        "plain",
        CUDA,
        "from_address(address))\n",
        "from_address(address)).copy()\n",
    ),
    "memory that is not released": ("low memory", CUDA, '        self._free("cuMemFree", address)', "        pass"),
    "a captured graph that is kept": (
        "plain",
        CUDA,
        "self._free(*unfinished.pop(0))",
        "unfinished.pop(0)",
    ),
    "an executable graph that is kept": (
        "many step counts",
        CUDA,
        '        self._free("cuGraphExecDestroy", graph)',
        "        pass",
    ),
    "events that are kept": (
        "timed",
        CUDA,
        '                    self._free("cuEventDestroy", event)',
        "  " * 10 + "pass",
    ),
    "an event without a time": (
        "timed",
        CUDA,
        '        self._do("cuEventRecord", events[-1], self.stream)',
        "        pass",
    ),
    "a stream that is forgotten": (
        "plain",
        CUDA,
        'self._own("cuStreamDestroy", self._do("cuStreamCreate", _NON_BLOCKING))',
        'int(self._do("cuStreamCreate", _NON_BLOCKING))',
    ),
    "a context that stays current": ("plain", CUDA, '            self._do("cuCtxPopCurrent")', "            pass"),
    "a context that is not made current": ("plain", CUDA, '        self._do("cuCtxPushCurrent", self._context)', ""),
    "a context that is retained": (
        "plain",
        CUDA,
        '            self._do("cuDevicePrimaryCtxRelease", self._ordinal)',
        "            pass",
    ),
    "close frees nothing": ("plain", CUDA, "in reversed([*self._owned]):", "in ():"),
    "scratch memory that is too small": ("plain", EXECUTOR, "if most := max(", "if most := -8 + max("),
    "scratch memory that is freed": (
        "plain",
        EXECUTOR,
        "self._activations = self.device.allocate(most)",
        "self.device.release(address := self.device.allocate(most)); self._activations = address",
    ),
    "a picture that is not waited for": (
        "plain",
        RUN,
        "first=True, last=True)\n            self.device.wait()",
        "first=True, last=True)",
    ),
    "graphs that are not kept": (
        "plain",
        RUN,
        "        return self._graphs.get(key)\n",
        "        return self._graphs.pop(key, None)\n",
    ),
    "scratch memory that is not set": (
        "plain",
        TENSORRT,
        "            self._context.set_device_memory(activations, self.activation_bytes)\n",
        "",
    ),
    "the library's own graphs": (
        "plain",
        TENSORRT,
        "            settings.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED\n",
        "",
    ),
    "settings that are not kept": (
        "plain",
        TENSORRT,
        "self._settings, self._activations = settings, 0",
        "self._settings, self._activations = None, 0",
    ),
    "memory that is released while it is used": (
        "in use",
        CUDA,
        '        self._finish()\n        self._free("cuMemFree", address)',
        '        self._free("cuMemFree", address)',
    ),
    "pinned memory that is freed while it is used": (
        "interrupted",
        CUDA,
        '        self._finish()\n        self._free("cuMemFreeHost"',
        '        self._free("cuMemFreeHost"',
    ),
    "garbage that is collected during capture": ("freed during capture", CUDA, "    gc.disable()\n", ""),
    "a capture that is not tried again": (
        "freed during capture",
        CUDA,
        "self._record(work) or self._record(work, last=True)",
        "self._record(work, last=True)",
    ),
    "weights that stay": ("low memory", TENSORRT, "bool(self._engine.unload_weights())", "True"),
    "weights that are not loaded again": (
        "low memory",
        EXECUTOR,
        "                self._parked[name].unpark()\n",
        "",
    ),
    "parked plans that are forgotten": (
        "low memory",
        EXECUTOR,
        "                while self._parked:\n",
        "                while False:\n",
    ),
    "graphs on memory that was given up": (
        "more and more steps",
        "koala_runtime.pipeline",
        "if not self.executor.has_room(program):",
        "if False:",
    ),
    "history that nobody clears": ("history", PROGRAM, "HISTORY: history[i],", "HISTORY: history[i or 1],"),
    "history that is read where it is written": ("history", PROGRAM, NEXT, "NEXT_HISTORY: history[i]}"),
    "history that stays with the first step": ("history", PROGRAM, "HISTORY: history[i],", "HISTORY: history[0],"),
    "history of the step before last": ("history and noise", PROGRAM, NEXT, "NEXT_HISTORY: history[0]}"),
    "the first row of a table in every step": ("history", PROGRAM, ROW, ".row(0, t.shape)"),
    "the noise of the next row": (
        "noise in every row",
        PROGRAM,
        ROW,
        ".row((step + (t.name == NOISE)) % steps, t.shape)",
    ),
    "noise from the first row on": (
        "noise in some rows",
        INPUTS,
        "drawn[table.draws, some]",
        "drawn[: table.draws.sum(), some]",
    ),
    "a program of a sampler without noise": ("noise in every row", PIPELINE, "request.table.draws.any()", "False"),
    "noise that is left out": (
        "history and noise",
        INPUTS,
        "drawn.reshape(steps, -1)",
        "drawn.reshape(steps, -1) * 0",
    ),
    "a logger per plan": ("plain", MACHINE, "@cache\n", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(
    mistake: str, on_null_driver: OnNullDriver, null_bundle: Path, unchanged: Callable[[str], Seen]
) -> None:
    way, *change = MISTAKES[mistake]
    right = unchanged(way if way in {**WAYS, **SAMPLED} else "plain")
    assert on_null_driver(changes.draw_changed, null_bundle, way, right, *change) != []
