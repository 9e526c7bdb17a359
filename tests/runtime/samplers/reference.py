"""diffusers' schedulers driven as its pipelines drive them, and tables driven as a step's graph does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from koala_runtime.samplers.forms import HISTORY
from koala_runtime.samplers.table import Table

Array = NDArray[np.float64]
SHAPE = (1, 4, 8, 8)
SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def model(latents: Any, timestep: float, library: Any) -> Any:
    """A U-Net that any sampler can be run on: smooth, not linear, and another at every timestep."""
    return 0.8 * latents * (0.3 + timestep / 1500) + 0.3 * library.sin(2 * latents + timestep / 300)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def by_diffusers(
    name: str, keys: Mapping[str, Any], steps: int, *, double: bool = False, **step_arguments: Any
) -> Array:
    """Return the last latents of a scheduler of diffusers; ``double`` computes with its numbers in float64."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    scheduler = cls(**{key: value for key, value in keys.items() if key in known})
    scheduler.set_timesteps(steps)
    latents, generator = noise() * scheduler.init_noise_sigma, torch.Generator().manual_seed(1)
    if double:
        latents = latents.double()
        for key, value in vars(scheduler).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(scheduler, key, value.double())
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_arguments["generator"] = generator
    module, draw = sys.modules[cls.__module__], diffusers.utils.torch_utils.randn_tensor
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):  # the same noise in every precision
            patch.setattr(module, "randn_tensor", lambda shape, **how: draw(shape, **{**how, "dtype": torch.float32}))
        for timestep in scheduler.timesteps:
            prediction = model(scheduler.scale_model_input(latents, timestep), float(timestep), torch)
            latents = scheduler.step(prediction, timestep, latents, **step_arguments).prev_sample
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
