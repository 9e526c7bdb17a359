"""Backends by name."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from koala_bench.backends.base import REFERENCE
from koala_bundle.engine_record import engine_variants
from koala_bundle.errors import ArgumentError
from koala_bundle.targets import TARGETS, Target
from koala_runtime.preflight import obstacle

_CLASSES = {
    "diffusers": "koala_bench.backends.diffusers:Diffusers",
    "diffusers-compile": "koala_bench.backends.diffusers:DiffusersCompiled",
    "optimum-onnx": "koala_bench.backends.optimum:OptimumOnnx",
    "openvino-genai": "koala_bench.backends.openvino:OpenVinoGenAI",
    REFERENCE: "koala_bench.backends.diffusers:Reference",
}
OWN_EXPORTERS = {"optimum-onnx": "optimum", "openvino-genai": "openvino_genai"}
"""Backends that export the checkpoint themselves, with a module that each needs, usually in a Python of their own."""


def find_backend(name: str) -> Any:
    """Return the class, or a function, that makes the backend ``name`` from a Workload.

    ``name`` may also be ``module:Class``. Raises ArgumentError if there is no such backend.
    """
    kind, _, rest = name.partition(":")
    if kind == "koala":
        from koala_bench.backends.koala import Koala

        return lambda workload: Koala(workload, rest)
    if kind == "onnxruntime":
        from koala_bench.backends.koala import OnnxRuntime

        return lambda workload: OnnxRuntime(workload, rest)
    if not rest and name not in _CLASSES:
        raise ArgumentError(
            "backend",
            expected=f"one of {', '.join(_CLASSES)}, onnxruntime:PROVIDER, koala:TARGET or module:Class",
            found=repr(name),
            fix="pass one of these",
        )
    module, _, attribute = _CLASSES.get(name, name).partition(":")
    return getattr(importlib.import_module(module), attribute)


def backend_problems(
    bundle: Path, with_own_python: Collection[str] = (), device: int | str = 0
) -> dict[str, str | None]:
    """Return every backend's name with the reason why it cannot run on the GPU ``device``; None if it can.

    Those in ``with_own_python`` run in another Python environment, which is not examined.
    """
    from koala_bench.backends.koala import PROVIDERS

    reasons: dict[str, str | None] = dict.fromkeys(("diffusers", "diffusers-compile"))
    for name, module in OWN_EXPORTERS.items():
        reasons[name] = None if find_spec(module) else "not installed here; see docs/benchmarks.md"
    present = importlib.import_module("onnxruntime").get_available_providers() if find_spec("onnxruntime") else ()
    for name, provider in PROVIDERS.items():
        reasons[f"onnxruntime:{name}"] = None if provider in present else f"this ONNX Runtime has no {provider}"
    for target in TARGETS:
        reasons[f"koala:{target}"] = _target_problem(bundle, target, device)
    return reasons | dict.fromkeys(with_own_python)


def _target_problem(bundle: Path, target: Target, device: int | str) -> str | None:
    if reason := obstacle(target, device):
        return reason
    return None if engine_variants(bundle, target) else "the bundle has no engines for it"
