"""Samplers as tables of numbers: every one is the same linear update, so that one compiled step serves them all.

- ``forms``: the update, and forms, on which each sampler is written as it is derived; ``table``: rows become arrays
- ``config``: diffusers' configuration keys; ``levels``: noise levels and timesteps
- ``euler`` (ancestral and EDM too), ``second_order`` (Heun, DPM2), ``multistep`` (LMS, PLMS): x = x0 + sigma e
- ``diffusion`` (DDIM, DDPM), ``consistency`` (LCM, TCD): x = alpha x0 + sigma e
- ``dpm_solver``, ``deis``, ``unipc``: exponential integrators
- ``scheduler``: what diffusers' classes share; ``classes``: each of them; ``names``: short names
"""

from __future__ import annotations

from typing import Any

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_runtime.samplers.classes import SCHEDULERS, make_scheduler
from koala_runtime.samplers.names import NAMES, available, find, label
from koala_runtime.samplers.scheduler import Schedule, Scheduler
from koala_runtime.samplers.table import Table

__all__ = ["NAMES", "Schedule", "Scheduler", "Table", "available", "choose", "default_table", "label", "make_scheduler"]


def default_table(manifest: Manifest, steps: int | None = None) -> Table:
    """Return the table of the checkpoint's own scheduler, for the bundle's own steps unless others are given."""
    return make_scheduler(manifest.spec.scheduler).table(Schedule(steps or manifest.sampling.num_inference_steps))


def choose(chosen: Any, current: Scheduler) -> Scheduler:
    """Return the scheduler that ``chosen`` is in place of ``current``: a name, one of ours, or one of diffusers'.

    Raises ArgumentError for anything else.
    """
    if chosen is None:
        return current
    if isinstance(chosen, Scheduler):
        return chosen
    if isinstance(chosen, str):
        return find(chosen, current)
    name = type(chosen).__name__
    if name in SCHEDULERS and hasattr(chosen, "config"):
        return SCHEDULERS[name].from_config(chosen.config)
    raise ArgumentError(
        "scheduler",
        expected="a name, or a scheduler of koala_runtime or diffusers that can be computed",
        found=name if hasattr(chosen, "config") else repr(chosen),
        fix="pass a name such as dpmpp_2m; `koala inspect BUNDLE` lists them",
    )
