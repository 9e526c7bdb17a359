"""Two evaluations a step on noise levels: Heun, DPM2 and its ancestral kind. A step is two rows, the last is one."""

from __future__ import annotations

import math

import numpy as np

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.euler import scale, split
from koala_runtime.samplers.forms import H1, NOISE, X, slope
from koala_runtime.samplers.levels import levels, timestep_of, train_sigmas
from koala_runtime.samplers.table import Row, Table, make_table


def heun(config: Config, steps: int) -> Table:
    """A step of Euler, then the mean of both slopes from where it began; arXiv 2206.00364, algorithm 1.

    h1 keeps x and half of the first slope's part.
    """
    found = levels(config, steps, last="always zero")
    rows, kind, count = list[Row](), config.prediction_type, len(found.timesteps)
    for index, time in enumerate(found.timesteps):
        sigma, after = found.sigmas[index], found.sigmas[index + 1]
        part = (after - sigma) * slope(sigma, kind)
        rows.append(Row(time, [X + part, X + part / 2], (1, sigma), scale(sigma)))
        if index < count - 1:
            corrected = H1 + (after - sigma) / 2 * slope(after, kind)
            rows.append(Row(found.timesteps[index + 1], [corrected], (1, after), scale(after)))
    return make_table(rows, found.init_noise_sigma)


def dpm2(config: Config, steps: int) -> Table:
    """The slope at the geometric mean of both levels; k-diffusion's sample_dpm_2, after arXiv 2206.00364."""
    return _dpm2(config, steps, ancestral=False)


def dpm2_ancestral(config: Config, steps: int) -> Table:
    """The same to less noise than sigma', and fresh noise up to it."""
    return _dpm2(config, steps, ancestral=True)


def _dpm2(config: Config, steps: int, *, ancestral: bool) -> Table:
    found = levels(config, steps, last="always zero")
    logs, kind = np.log(train_sigmas(config)), config.prediction_type
    times = found.timesteps.round() if config.spacing == "karras" else found.timesteps
    rows = list[Row]()
    for index, time in enumerate(times):
        sigma, after = found.sigmas[index], found.sigmas[index + 1]
        if index == len(times) - 1:
            rows.append(Row(time, [X - sigma * slope(sigma, kind)], (1, sigma), scale(sigma)))
            break
        down, up = split(sigma, after) if ancestral else (after, 0.0)
        middle = float(np.float32(math.exp((math.log(sigma) + math.log(down)) / 2)))
        rows.append(Row(time, [X + (middle - sigma) * slope(sigma, kind), X], (1, sigma), scale(sigma)))
        second = H1 + (down - sigma) * slope(middle, kind) + up * NOISE
        # Between both levels diffusers puts a known picture at the lower one.
        rows.append(Row(float(timestep_of(middle, logs)), [second], (1, after), scale(middle), draws=ancestral))
    return make_table(rows, found.init_noise_sigma)
