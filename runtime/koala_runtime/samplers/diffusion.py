"""DDIM and DDPM: steps between the alphas of training timesteps."""

from __future__ import annotations

import math

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.forms import NOISE, X, original_and_noise
from koala_runtime.samplers.levels import alphas_cumprod, share_level, whole_timesteps
from koala_runtime.samplers.table import Row, Table, make_table

_LEAST_VARIANCE = 1e-20  # as in diffusers


def ddim(config: Config, steps: int) -> Table:
    """Equation 12 of arXiv 2010.02502; ``eta`` is the share of DDPM's noise that is added."""
    shares, apart = alphas_cumprod(config).astype(float), config.num_train_timesteps // steps
    last = 1.0 if config.set_alpha_to_one else shares[0]
    rows = []
    for time in map(int, whole_timesteps(config, steps)):
        here, there = shares[time], shares[time - apart] if time >= apart else last
        x0, noise = original_and_noise(math.sqrt(here), math.sqrt(1 - here), config.prediction_type)
        up = config.eta * math.sqrt((1 - there) / (1 - here) * (1 - here / there))
        form = math.sqrt(there) * x0 + math.sqrt(max(1 - there - up**2, 0.0)) * noise + up * NOISE
        rows.append(Row(time, [form], share_level(here), draws=config.eta > 0))
    return make_table(rows)


def ddpm(config: Config, steps: int) -> Table:
    """Mean and variance of the posterior, equations 6 and 7 of arXiv 2006.11239; no noise at timestep 0."""
    shares, times = alphas_cumprod(config).astype(float), [*map(int, whole_timesteps(config, steps))]
    rows = []
    for time, to in zip(times, [*times[1:], None], strict=True):
        here, there = shares[time], 1.0 if to is None else shares[to]
        x0, _ = original_and_noise(math.sqrt(here), math.sqrt(1 - here), config.prediction_type)
        kept = here / there
        variance = max((1 - there) / (1 - here) * (1 - kept), _LEAST_VARIANCE)
        if config.variance_type == "fixed_large":
            variance = 1 - kept
        mean = math.sqrt(there) * (1 - kept) / (1 - here) * x0 + math.sqrt(kept) * (1 - there) / (1 - here) * X
        form = mean + (math.sqrt(variance) if time else 0) * NOISE
        rows.append(Row(time, [form], share_level(here), draws=time > 0))
    return make_table(rows)
