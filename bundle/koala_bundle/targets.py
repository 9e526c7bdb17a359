"""The table of targets: what compiles a plan, what runs it, and what that takes.

Nothing else in the project compares the names of targets; it asks a ``Target``.
"""

from __future__ import annotations

from dataclasses import dataclass

from koala_bundle.errors import ArgumentError


@dataclass(frozen=True)
class Target:
    """One way to run a bundle.

    ``name`` is what users write. ``engines`` is the folder of its plans, which two targets may share. ``library`` is
    the Python module that compiles the plans and runs them (``koala_machine.support`` says what installs it). ``half``
    is the dtype in which float16 tensors are held at run time.
    ``needs_gpu``: running takes an NVIDIA GPU; ``built_on_its_gpu``: so does building, and plans are for that model.
    ``has_device``: tensors live in a device's own memory, so that streams, device output and a memory budget exist.
    """

    name: str
    engines: str
    library: str
    half: str
    needs_gpu: bool
    built_on_its_gpu: bool
    has_device: bool

    def __str__(self) -> str:
        return self.name


TENSORRT = Target(
    "tensorrt",
    engines="tensorrt",
    library="tensorrt",
    half="float16",
    needs_gpu=True,
    built_on_its_gpu=True,
    has_device=True,
)
RTX = Target(
    "rtx",
    engines="rtx",
    library="tensorrt_rtx",
    half="float16",
    needs_gpu=True,
    built_on_its_gpu=False,
    has_device=True,
)
CUDA = Target(
    "cuda",
    engines="cuda",
    library="onnxruntime",
    half="float16",
    needs_gpu=True,
    built_on_its_gpu=False,
    has_device=True,
)
"""ONNX Runtime's CUDA provider, which takes the ONNX files as they are."""
CPU = Target(
    "cpu",
    engines="cpu",
    library="onnxruntime",
    half="float32",
    needs_gpu=False,
    built_on_its_gpu=False,
    has_device=False,
)
SIMULATED = Target(
    "simulated",
    engines="cpu",
    library="onnxruntime",
    half="float32",
    needs_gpu=False,
    built_on_its_gpu=False,
    has_device=True,
)
"""Runs the cpu target's plans on a simulated GPU (``koala_runtime.devices.simulated``); for development."""

TARGETS = (TENSORRT, RTX, CUDA, CPU)
"""Those for users, best first."""


def find_target(name: str, *, simulated: bool = False) -> Target:
    """Return the target called ``name``; ``simulated`` also allows SIMULATED. Raises ArgumentError if unknown."""
    known = (*TARGETS, SIMULATED) if simulated else TARGETS
    if found := next((target for target in known if target.name == name), None):
        return found
    names = " or ".join(target.name for target in TARGETS)
    raise ArgumentError("target", expected=names, found=repr(name), fix="pass one of these")
