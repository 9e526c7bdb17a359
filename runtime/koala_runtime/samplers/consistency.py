"""Samplers of models that were distilled to jump to the end: LCM and TCD."""

from __future__ import annotations

import math

import numpy as np

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.forms import NOISE, X, original_and_noise
from koala_runtime.samplers.levels import alphas_cumprod, share_level
from koala_runtime.samplers.table import Row, Table, make_table

_SIGMA_DATA = 0.5  # of diffusers' LCMScheduler


def lcm(config: Config, steps: int) -> Table:
    """Jump to x0, blended with x near the end (arXiv 2310.04378), and back to the next level with fresh noise."""
    shares, times = alphas_cumprod(config).astype(float), _times(config, steps)
    rows = []
    for time, to in zip(times, [*times[1:], None], strict=True):
        x0, _ = original_and_noise(math.sqrt(shares[time]), math.sqrt(1 - shares[time]), config.prediction_type)
        scaled = time * config.timestep_scaling
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        jumped = scaled / math.hypot(scaled, _SIGMA_DATA) * x0 + skip * X
        if to is not None:
            jumped = math.sqrt(shares[to]) * jumped + math.sqrt(1 - shares[to]) * NOISE
        rows.append(Row(time, [jumped], share_level(shares[time]), draws=to is not None))
    return make_table(rows)


def tcd(config: Config, steps: int) -> Table:
    """Jump to a level below the next by ``eta``, and up to it with fresh noise; algorithm 4 of arXiv 2402.19159."""
    shares, times = alphas_cumprod(config).astype(float), _times(config, steps)
    rows = []
    for index, time in enumerate(times):
        last = index == len(times) - 1
        to = 0 if last else times[index + 1]
        below = math.floor(
            np.float32(1 - config.eta) * np.float32(to)
        )  # torch's product, which may be below a whole one
        x0, noise = original_and_noise(math.sqrt(shares[time]), math.sqrt(1 - shares[time]), config.prediction_type)
        form, draws = math.sqrt(shares[below]) * x0 + math.sqrt(1 - shares[below]) * noise, config.eta > 0 and not last
        if draws:
            kept = shares[to] / shares[below]
            form = math.sqrt(kept) * form + math.sqrt(1 - kept) * NOISE
        rows.append(Row(time, [form], share_level(shares[time]), draws=draws))
    return make_table(rows)


def _times(config: Config, steps: int) -> list[int]:
    """Return the call's own timesteps, or evenly spaced members of those that the model was distilled on."""
    if config.timesteps:
        return [int(time) for time in config.timesteps]
    apart = config.num_train_timesteps // config.original_inference_steps
    trained = (np.arange(1, config.original_inference_steps + 1) * apart - 1)[::-1]
    chosen = np.floor(np.linspace(0, len(trained), steps, endpoint=False)).astype(int)
    return [int(time) for time in trained[chosen]]
