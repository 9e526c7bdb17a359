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
from koala_runtime.samplers.names import find, table
from koala_runtime.samplers.table import Table

__all__ = ["DEFAULT", "Table", "table_of"]
DEFAULT = "euler"
"""The sampler of every checkpoint that is compiled: its own class is EulerDiscreteScheduler."""


def table_of(spec: SchedulerSpec, scheduler: str | None, steps: int, eta: float | None = None) -> Table:
    """Return the table of ``scheduler`` on the checkpoint's noise levels; None is the checkpoint's own, Euler."""
    name, keys = find(scheduler or DEFAULT)
    own = asdict(spec) | ({} if eta is None else {"eta": eta})
    return table(name, own | keys, steps)
