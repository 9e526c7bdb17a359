"""Euler's method on noise levels, plain and ancestral; and with EDM's preconditioning."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.forms import NOISE, PREDICTION, X, slope
from koala_runtime.samplers.levels import levels
from koala_runtime.samplers.table import Row, Table, make_table


def euler(config: Config, steps: int) -> Table:
    """x' = x + (sigma' - sigma) dx/dsigma; arXiv 2206.00364, algorithm 2 without noise."""
    found = levels(config, steps)
    rows = [
        Row(time, [X + (after - sigma) * slope(sigma, config.prediction_type)], (1, sigma), scale(sigma))
        for time, sigma, after in zip(found.timesteps, found.sigmas[:-1], found.sigmas[1:], strict=True)
    ]
    return make_table(rows, found.init_noise_sigma)


def euler_ancestral(config: Config, steps: int) -> Table:
    """A step to less noise than sigma', and fresh noise up to it: the variances of DDPM's posterior."""
    found = levels(config, steps, last="always zero")
    rows = []
    for time, sigma, after in zip(found.timesteps, found.sigmas[:-1], found.sigmas[1:], strict=True):
        down, up = split(sigma, after)
        forms = [X + (down - sigma) * slope(sigma, config.prediction_type) + up * NOISE]
        rows.append(Row(time, forms, (1, sigma), scale(sigma), draws=True))
    return make_table(rows, found.init_noise_sigma)


def edm_euler(config: Config, steps: int) -> Table:
    """Euler's method where the network sees and gives what arXiv 2206.00364, table 1, says."""
    assert config.sigma_min is not None and config.sigma_max is not None
    data = config.sigma_data
    if config.sigma_schedule == "karras":
        top, bottom = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
        spaced = (top + np.linspace(0, 1, steps) * (bottom - top)) ** config.rho
    else:  # a single step is at the lowest level, as in diffusers
        spaced = np.exp(np.linspace(math.log(config.sigma_min), math.log(config.sigma_max), steps))[::-1]
    end = spaced[-1] if config.final_sigmas_type == "sigma_min" else 0
    sigmas = np.append(spaced, end).astype(np.float32).astype(float)
    rows = []
    for sigma, after in pairwise(sigmas):
        total = math.hypot(sigma, data)
        sign = 1 if config.prediction_type == "epsilon" else -1
        x0 = (data / total) ** 2 * X + sign * sigma * data / total * PREDICTION
        rows.append(Row(0.25 * math.log(sigma), [X + (after - sigma) / sigma * (X - x0)], (1, sigma), 1 / total))
    return make_table(rows, math.hypot(config.sigma_max, 1))


def scale(sigma: float) -> float:
    """Return c_in, which brings latents of noise level ``sigma`` to unit variance."""
    return 1 / math.hypot(sigma, 1)


def split(sigma: float, after: float) -> tuple[float, float]:
    """Return the level to step down to from ``sigma`` and the noise to add, so that together they are ``after``."""
    up = math.sqrt(max(after**2 * (sigma**2 - after**2) / sigma**2, 0.0))
    return math.sqrt(max(after**2 - up**2, 0.0)), up
