"""What is measured: each backend draws the same picture with the same checkpoint, as fast as it can.

A backend is a class that takes a ``Work``; it is made and used in a process of its own (``worker``). Ours are in
``ours``, others' in ``theirs``, and more can be named as ``module:Class``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import TARGETS, engine_folder

Pixels = NDArray[np.uint8]
TEXT, STEPS, VAE, HOST = PARTS = ("text", "steps", "vae", "host")
"""Where the time of a picture goes; ``host`` is all the rest, copies among it."""

REFERENCE = "reference"
"""diffusers in float32, what pictures are compared with."""

OPTIMUM = "optimum-onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Work:
    """One run, the same for all: size, batch and precision are the bundle's.

    ``source`` is a checkpoint folder or hub name; ``scratch`` a folder for what a backend prepares before it is timed.
    """

    bundle: str
    source: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scratch: str


class Backend(Protocol):
    """Loads when it is made. ``packages`` are what has to be installed for it, by distribution name.

    A class with a static ``prepare(work)`` has it called in a process of its own first: what others do once (export,
    convert), and is no part of a start.
    """

    packages: tuple[str, ...]

    def draw(self) -> Pixels:
        """Return the pictures, uint8 [batch, height, width, 3], finished."""

    def parts(self) -> dict[str, float]:
        """Draw once more and return the seconds of each of PARTS."""


def find(name: str) -> Any:
    """Return what makes the backend called ``name`` from a Work. Raises ArgumentError if there is none."""
    kind, _, rest = name.partition(":")
    if kind == "koala":
        from koala_bench.ours import Koala

        return lambda work: Koala(work, rest)
    if kind == "onnxruntime":
        from koala_bench.ours import OnnxRuntime

        return lambda work: OnnxRuntime(work, rest)
    if rest:
        return getattr(importlib.import_module(kind), rest)
    from koala_bench import theirs

    known = {
        "diffusers": theirs.Diffusers,
        "diffusers-compile": theirs.DiffusersCompiled,
        OPTIMUM: theirs.OptimumOnnx,
        REFERENCE: theirs.Reference,
    }
    if name not in known:
        raise ArgumentError(
            "--backend",
            expected=f"one of {', '.join(known)}, onnxruntime:PROVIDER, koala:TARGET or module:Class",
            found=repr(name),
            fix="pass one of these",
        )
    return known[name]


def available(bundle: Path, elsewhere: Sequence[str] = ()) -> dict[str, str | None]:
    """Return every backend by name with None, or in words why it cannot be measured here.

    Those of ``elsewhere`` have a Python of their own, which will tell.
    """
    import onnxruntime

    told: dict[str, str | None] = dict.fromkeys(("diffusers", "diffusers-compile"))
    told[OPTIMUM] = None if find_spec("optimum") else "not installed here; see docs/benchmarks.md"
    present = onnxruntime.get_available_providers()
    for name, provider in PROVIDERS.items():
        told[f"onnxruntime:{name}"] = None if provider in present else f"this ONNX Runtime has no {provider}"
    for target in TARGETS:
        told[f"koala:{target}"] = _obstacle(bundle, target)
    return told | dict.fromkeys(elsewhere)


def _obstacle(bundle: Path, target: str) -> str | None:
    from koala_runtime.selection import obstacle

    if problem := obstacle(target):
        return problem
    return None if engine_folder(bundle, target).is_dir() else "the bundle has no engines for it"
