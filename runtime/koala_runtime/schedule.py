"""EulerDiscrete's tables: timesteps and noise levels for a number of steps.

The arithmetic follows diffusers' EulerDiscreteScheduler (checked against it in the tests); the update itself is in
the denoiser's graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from koala_bundle.spec import SchedulerSpec
from koala_runtime.arrays import Floats


@dataclass(frozen=True)
class Schedule:
    """``timesteps`` float32 [n], conditioning values; ``sigmas`` float32 [n + 1], noise levels, unitless.

    ``init_noise_sigma`` scales the initial noise. ``n`` is the step count asked for, except where diffusers' own
    trailing arithmetic yields one more (a float range whose end rounds upwards).
    """

    timesteps: Floats
    sigmas: Floats
    init_noise_sigma: float


def train_sigmas(spec: SchedulerSpec) -> Floats:
    """Return sqrt((1 - ᾱ) / ᾱ) for every training timestep, float32 [num_train_timesteps]."""
    count = spec.num_train_timesteps
    if spec.beta_schedule == "linear":
        betas = np.linspace(spec.beta_start, spec.beta_end, count, dtype=np.float32)
    else:
        betas = np.linspace(spec.beta_start**0.5, spec.beta_end**0.5, count, dtype=np.float32) ** 2
    alphas_cumprod = np.cumprod(1 - betas, dtype=np.float32)
    sigmas: Floats = np.sqrt((1 - alphas_cumprod) / alphas_cumprod).astype(np.float32)
    return sigmas


def make_schedule(spec: SchedulerSpec, num_inference_steps: int) -> Schedule:
    """Return the tables for ``num_inference_steps`` (spacings: Table 2 of arXiv 2305.08891)."""
    count, steps = spec.num_train_timesteps, num_inference_steps
    if spec.timestep_spacing == "linspace":
        timesteps = np.linspace(0, count - 1, steps, dtype=np.float32)[::-1]
    elif spec.timestep_spacing == "leading":
        timesteps = (np.arange(steps) * (count // steps))[::-1].astype(np.float32) + np.float32(spec.steps_offset)
    else:
        timesteps = np.arange(count, 0, -count / steps).round().astype(np.float32) - np.float32(1)

    table = train_sigmas(spec)
    if spec.interpolation_type == "linear":
        sigmas = np.interp(timesteps, np.arange(count), table)
    else:
        # One more than steps, as diffusers has it: the loop then ends on sigma_min and not on the zero appended.
        sigmas = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), steps + 1))
    with_end: Floats = np.append(sigmas, 0).astype(np.float32)
    largest = float(with_end.max())
    init = (largest**2 + 1) ** 0.5 if spec.timestep_spacing == "leading" else largest
    return Schedule(timesteps.astype(np.float32), with_end[: len(timesteps) + 1], init)
