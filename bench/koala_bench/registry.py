"""Backends by name: ours, others', and any class named as ``module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from koala_bench.backends import OPTIMUM, PROVIDERS, REFERENCE
from koala_bundle.engine_record import engine_folder
from koala_bundle.errors import ArgumentError
from koala_bundle.targets import TARGETS, Target
from koala_runtime.opening import obstacle


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
            "backend",
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


def _obstacle(bundle: Path, target: Target) -> str | None:
    if problem := obstacle(target):
        return problem
    return None if engine_folder(bundle, target).is_dir() else "the bundle has no engines for it"
