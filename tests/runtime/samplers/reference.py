"""diffusers' schedulers driven as its pipelines drive them, and tables driven as a step's graph does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from koala_runtime.samplers import Schedule, Table
from koala_runtime.samplers.config import Config
from koala_runtime.samplers.forms import HISTORY
from koala_runtime.samplers.levels import alphas_cumprod

Array = NDArray[np.float64]
SHAPE = (1, 4, 8, 8)
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def model(latents: Any, timestep: float, library: Any) -> Any:
    """A U-Net that any sampler can be run on: smooth, not linear, and another at every timestep."""
    return 0.8 * latents * (0.3 + timestep / 1500) + 0.3 * library.sin(2 * latents + timestep / 300)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class _Wider:
    """A library in which float32 is float64."""

    def __init__(self, library: Any) -> None:
        self._library, self.float32 = library, library.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def _set_shares(scheduler: Any, keys: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(Config)}
    shares = alphas_cumprod(Config(**{key: value for key, value in keys.items() if key in known}))
    theirs = scheduler.alphas_cumprod.numpy()
    shares[-1] = theirs[-1] if theirs[-1] == 2**-24 else shares[-1]
    np.testing.assert_allclose(shares, theirs, rtol=1e-4, atol=1e-7)
    scheduler.alphas_cumprod = torch.from_numpy(shares)


def by_diffusers(name: str, keys: Mapping[str, Any], steps: Schedule, *, double: bool = False) -> Array:
    """Return the last latents of a scheduler of diffusers.

    ``double`` steps in float64 between the levels that diffusers rounds to float32: DPM-Solver else rounds the latents
    in every step, and KDPM2 ancestral takes sigma'^2 (1 - sigma'^2 / sigma^2) from sigma'^2 in float32, which leaves no
    digits of the square of a small level (so that its levels are not rounded either). With a zero terminal SNR it takes
    the shares of the signal from us: those near zero are differences that float32 leaves five digits of.
    """
    cls = getattr(diffusers, name)
    module, draw = sys.modules[cls.__module__], diffusers.utils.torch_utils.randn_tensor
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):  # the same noise in every precision
            patch.setattr(module, "randn_tensor", lambda shape, **how: draw(shape, **{**how, "dtype": torch.float32}))
        scheduler = cls(**keys)
        if double and keys.get("rescale_betas_zero_snr"):
            _set_shares(scheduler, keys)
        own = {key: [*value] for key, value in (("timesteps", steps.timesteps), ("sigmas", steps.sigmas)) if value}
        if double and name == "KDPM2AncestralDiscreteScheduler":
            patch.setattr(module, "np", _Wider(np))
        scheduler.set_timesteps(**own or {"num_inference_steps": steps.count})
        if hasattr(scheduler, "set_begin_index"):  # else it searches the first timestep, which may be there twice
            scheduler.set_begin_index(0)
        takes = inspect.signature(scheduler.step).parameters
        arguments: dict[str, Any] = {"eta": steps.eta} if "eta" in takes else {}
        if "generator" in takes:
            arguments["generator"] = torch.Generator().manual_seed(1)
        latents = noise() * scheduler.init_noise_sigma
        if double:
            patch.setattr(module, "torch", _Wider(torch))
            latents = latents.double()
            for key, value in vars(scheduler).items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    setattr(scheduler, key, value.double())
        for timestep in scheduler.timesteps:
            prediction = model(scheduler.scale_model_input(latents, timestep), float(timestep), torch)
            latents = scheduler.step(prediction, timestep, latents, **arguments).prev_sample
    return latents.double().numpy()


def by_table(table: Table, dtype: Callable[[Any], Any] = np.float64) -> Array:
    """Return the last latents of a table; noise is drawn where it says so."""
    generator = torch.Generator().manual_seed(1)
    state = np.zeros((HISTORY + 1, *SHAPE), dtype)
    state[0] = noise().numpy() * dtype(table.init_noise_sigma)
    updates, scales = table.updates.astype(dtype), table.scales.astype(dtype)
    for update, scale, timestep, draws in zip(updates, scales, table.timesteps, table.draws, strict=True):
        fresh = torch.randn(SHAPE, generator=generator).numpy() if draws else np.zeros(SHAPE)
        prediction = model(state[0] * scale, float(timestep), np)
        state = np.tensordot(update, np.stack([*state, prediction, fresh.astype(dtype)]), axes=1).astype(dtype)
    return state[0].astype(float)
