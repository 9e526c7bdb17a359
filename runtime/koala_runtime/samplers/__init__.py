"""Samplers as tables of numbers: every one is the same linear update, so that one compiled step serves them all.

- ``forms``: the update, and forms, on which each sampler is written as it is derived; ``table``: rows become arrays
- ``config``: diffusers' configuration keys; ``levels``: noise levels and timesteps
- ``euler`` (ancestral and EDM too), ``second_order`` (Heun, DPM2), ``multistep`` (LMS, PLMS): x = x0 + sigma e
- ``diffusion`` (DDIM, DDPM), ``consistency`` (LCM, TCD): x = alpha x0 + sigma e
- ``dpm_solver``, ``deis``, ``unipc``: exponential integrators
- ``names``: which class, which short name, which keys
"""

from __future__ import annotations

from dataclasses import asdict

from koala_bundle.spec import SchedulerSpec
from koala_runtime.samplers.names import table
from koala_runtime.samplers.table import Table

__all__ = ["Table", "default_table", "table"]


def default_table(spec: SchedulerSpec, steps: int) -> Table:
    """Return the table of the checkpoint's own sampler."""
    return table("EulerDiscreteScheduler", asdict(spec), steps)
