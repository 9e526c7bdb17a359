"""Noise levels and timesteps, with diffusers' own roundings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from koala_runtime.samplers.config import Config

Floats = NDArray[np.float64]
_RHO = 7.0  # of arXiv 2206.00364
_NO_SIGNAL = 2.0**-24  # what diffusers puts in place of the zero of a zero terminal SNR
_BISECTIONS, _TERMS = 60, 80


class Levels(NamedTuple):
    """``timesteps`` [n], ``sigmas`` [n + 1], and what the first latents are multiplied by."""

    timesteps: Floats
    sigmas: Floats
    init_noise_sigma: float


def alphas_cumprod(config: Config) -> NDArray[np.float32]:
    """Return the share of the signal's variance at every training timestep, float32 [num_train_timesteps]."""
    count, single = config.num_train_timesteps, np.float32
    if config.beta_schedule == "linear":
        betas = _linspace(config.beta_start, config.beta_end, count)
    else:
        betas = _linspace(config.beta_start**0.5, config.beta_end**0.5, count) ** 2
    if config.rescale_betas_zero_snr:
        betas = _without_terminal_signal(betas)
    shares: NDArray[np.float32] = np.cumprod((1 - betas).astype(single), dtype=float).astype(single)
    return shares


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """Return the numbers of ``torch.linspace``, which counts from both ends in steps of float32."""
    first, last = float(np.float32(start)), float(np.float32(end))
    step = float((np.float32(end) - np.float32(start)) / np.float32(max(count - 1, 1)))
    place = np.arange(count)
    found: NDArray[np.float32] = np.where(
        place < count // 2, first + step * place, last - step * (count - 1 - place)
    ).astype(np.float32)
    return found


def share_level(share: float) -> tuple[float, float]:
    """Return what a picture and noise are multiplied by where ``share`` of the variance is the picture's."""
    return math.sqrt(share), math.sqrt(1 - share)


def train_sigmas(config: Config) -> NDArray[np.float32]:
    """Return sqrt((1 - a) / a) of every ``alphas_cumprod``."""
    shares = alphas_cumprod(config).copy()
    if config.rescale_betas_zero_snr:
        shares[-1] = _NO_SIGNAL
    sigmas: NDArray[np.float32] = np.sqrt((1 - shares) / shares).astype(np.float32)
    return sigmas


def _without_terminal_signal(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift and scale so that the last timestep has no signal; algorithm 1 of arXiv 2305.08891."""
    roots = np.sqrt(np.cumprod(1 - betas, dtype=float).astype(np.float32))
    first, last = roots[0], roots[-1]
    shares = ((roots - last) * (first / (first - last))) ** 2
    rescaled: NDArray[np.float32] = 1 - np.concatenate([shares[:1], shares[1:] / shares[:-1]])
    return rescaled


def timestep_of(sigma: ArrayLike, log_sigmas: Floats) -> Floats:
    """Return the timestep, with fractions, at which training has the noise level ``sigma``.

    As in diffusers, after the last level that is not above it: with zero terminal SNR the very last may be lower than
    those before it.
    """
    wanted = np.log(np.maximum(np.atleast_1d(np.asarray(sigma, float)), 1e-10))
    reached = wanted >= log_sigmas[:, None]
    last = len(log_sigmas) - 1 - reached[::-1].argmax(axis=0)
    low = np.where(reached.any(axis=0), last, 0).clip(max=len(log_sigmas) - 2)
    share = (wanted - log_sigmas[low]) / (log_sigmas[low + 1] - log_sigmas[low])
    found: Floats = low + share.clip(0, 1)
    return found.reshape(np.shape(sigma))


def levels(config: Config, steps: int, last: str = "zero") -> Levels:
    """Return what Euler, Heun, DPM2 and LMS step over: noise levels at timesteps that may have fractions.

    ``last`` is what the scheduler knows of ``final_sigmas_type``: others than Euler's always end at zero.
    """
    count = config.num_train_timesteps
    table = train_sigmas(config)
    if config.sigmas:
        own = np.array(config.sigmas, np.float32).astype(float)
        return _started(config, timestep_of(own[:-1], np.log(table)), own)
    if config.timesteps:
        times = np.array(config.timesteps, np.float32)
    elif config.timestep_spacing == "linspace":
        times = np.linspace(0, count - 1, steps, dtype=np.float32)[::-1]
    elif config.timestep_spacing == "leading":
        times = (np.arange(steps) * (count // steps))[::-1].astype(np.float32) + np.float32(config.steps_offset)
    else:
        times = np.arange(count, 0, -count / steps).round().astype(np.float32) - np.float32(1)
    sigmas: Floats = np.interp(times, np.arange(count), table)
    timesteps: Floats = times.astype(float)
    if config.interpolation_type == "log_linear":
        # One more than steps, as diffusers has it.
        sigmas = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), steps + 1))
    if config.spacing:
        sigmas = respaced(config, float(sigmas[0]), float(sigmas[-1]), steps)
        timesteps = timestep_of(sigmas, np.log(table))
    end = table[0] if config.final_sigmas_type == "sigma_min" and last == "zero" else 0
    ended = np.append(sigmas, end).astype(np.float32)[: len(timesteps) + 1]
    return _started(config, timesteps, ended.astype(float))


def _started(config: Config, timesteps: Floats, sigmas: Floats) -> Levels:
    largest = float(sigmas.max())
    return Levels(timesteps, sigmas, math.hypot(largest, 1) if config.timestep_spacing == "leading" else largest)


def solver_levels(config: Config, steps: int, family: str) -> tuple[Floats, Floats]:
    """Return the whole timesteps and the noise levels, one more, of DPM-Solver, DEIS and UniPC.

    ``family`` is ``multistep``, ``singlestep``, ``deis`` or ``unipc``, which end in different ways.
    """
    count = config.num_train_timesteps
    if config.timesteps:
        times = np.array(config.timesteps)
    elif family == "singlestep" or config.timestep_spacing == "linspace":
        times = np.linspace(0, count - 1, steps + 1).round()[::-1][:-1]
    elif config.timestep_spacing == "leading":
        times = (np.arange(steps + 1) * (count // (steps + 1)))[::-1][:-1].astype(float) + config.steps_offset
    else:
        times = np.arange(count, 0, -count / steps).round() - 1
    table = train_sigmas(config)
    logs = np.log(table)
    smallest = config.final_sigmas_type == "sigma_min"
    if config.spacing:
        if config.spacing == "lu":  # arXiv 2211.01095
            sigmas = np.exp(np.linspace(float(logs[-1]), float(logs[0]), steps))
            times = timestep_of(sigmas, logs).round()
        else:
            sigmas = respaced(config, float(table[-1]), float(table[0]), steps)
            times = timestep_of(sigmas, logs)
            times = times.round() if config.spacing == "karras" else times
        ends = {"deis": sigmas[-1], "unipc": sigmas[-1] if smallest else 0.0}
        end = ends.get(family, float(table[0]) if smallest else 0.0)
    else:
        sigmas = np.interp(times, np.arange(count), table)
        end = float(table[0]) if smallest or family == "deis" else 0.0
    return np.trunc(times), np.append(sigmas, end).astype(np.float32).astype(float)


def whole_timesteps(config: Config, steps: int) -> NDArray[np.int64]:
    """Return the timesteps of DDIM, DDPM and PNDM."""
    count = config.num_train_timesteps
    if config.timesteps:
        found = np.array(config.timesteps)
    elif config.timestep_spacing == "linspace":
        found = np.linspace(0, count - 1, steps).round()[::-1]
    elif config.timestep_spacing == "leading":
        found = (np.arange(steps) * (count // steps))[::-1].astype(float) + config.steps_offset
    else:
        found = np.round(np.arange(count, 0, -count / steps)) - 1
    whole: NDArray[np.int64] = found.astype(int)
    return whole


def respaced(config: Config, highest: float, lowest: float, count: int) -> Floats:
    """Return ``count`` noise levels from ``highest`` to ``lowest``, or to the configuration's own limits.

    ``karras``: equation 5 of arXiv 2206.00364; ``exponential``: even in the logarithm; ``beta``: quantiles of a Beta
    distribution, arXiv 2407.12173.
    """
    highest = highest if config.sigma_max is None else config.sigma_max
    lowest = lowest if config.sigma_min is None else config.sigma_min
    ramp, kind = np.linspace(0, 1, count), config.spacing
    if kind == "karras":
        top, bottom = highest ** (1 / _RHO), lowest ** (1 / _RHO)
        spaced: Floats = (top + ramp * (bottom - top)) ** _RHO
    elif kind == "exponential":
        spaced = np.exp(np.linspace(math.log(highest), math.log(lowest), count))
    else:
        spaced = lowest + beta_quantiles(1 - ramp, 0.6) * (highest - lowest)
    return spaced


def beta_quantiles(shares: Floats, shape: float) -> Floats:
    """Return the quantiles of Beta(shape, shape), by bisection of the series of its distribution function.

    The series (DLMF 8.17.22 with both parameters equal) converges fast up to one half; above, by symmetry.
    """
    place = np.arange(_TERMS)
    rising = np.cumprod(np.concatenate([[1.0], (1 - shape + place[:-1]) / (place[:-1] + 1)]))
    whole = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    lower = np.minimum(shares, 1 - shares)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = (rising / (shape + place) * middle[:, None] ** (shape + place)).sum(1) / whole
        low, high = np.where(reached < lower, middle, low), np.where(reached < lower, high, middle)
    found = (low + high) / 2
    return np.where(shares <= 0.5, found, 1 - found)
