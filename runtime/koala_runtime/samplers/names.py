"""Samplers by diffusers' class names, and from diffusers' keys to a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from koala_bundle.errors import ArgumentError
from koala_runtime.samplers.config import Config
from koala_runtime.samplers.consistency import lcm, tcd
from koala_runtime.samplers.deis import deis
from koala_runtime.samplers.diffusion import ddim, ddpm
from koala_runtime.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from koala_runtime.samplers.euler import edm_euler, euler, euler_ancestral
from koala_runtime.samplers.multistep import lms, plms
from koala_runtime.samplers.second_order import dpm2, dpm2_ancestral, heun
from koala_runtime.samplers.table import Table
from koala_runtime.samplers.unipc import unipc

Sampler = Callable[[Config, int], Table]
SAMPLERS: dict[str, Sampler] = {
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": dpm2,
    "KDPM2AncestralDiscreteScheduler": dpm2_ancestral,
    "LMSDiscreteScheduler": lms,
    "PNDMScheduler": plms,
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
    "DEISMultistepScheduler": deis,
    "UniPCMultistepScheduler": unipc,
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
    "EDMEulerScheduler": edm_euler,
}
SIGMAS = ("karras", "exponential", "beta", "lu")
"""Spacings that diffusers switches on with ``use_karras_sigmas`` and so on (``use_lu_lambdas``)."""
_KEYS = {field.name for field in fields(Config)} - {"sigmas"}
PLAIN: Mapping[str, Any] = {
    "thresholding": False,
    "clip_sample": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "trained_betas": None,
    "timestep_type": "discrete",
    "solver_p": None,
    "variance_type": None,
    "disable_corrector": [],
    "lambda_min_clipped": -float("inf"),
    "skip_prk_steps": True,
}
"""Keys of which only one value is a linear update with these numbers."""
_INSTEAD = {
    "thresholding": "leave it out: it is for models that draw pixels, not latents",
    "clip_sample": "set it to false, as SDXL's configuration does: latents have no bounds",
    "skip_prk_steps": "set it to true, as SDXL's configuration does",
    "variance_type": "use fixed_small or fixed_large: SDXL's U-Net gives no variance",
}


def make_config(name: str, keys: Mapping[str, Any]) -> Config:
    """Return the configuration of the class ``name``. Raises ArgumentError for what is not such an update."""
    if name not in SAMPLERS:
        raise ArgumentError("scheduler", expected=" or ".join(SAMPLERS), found=repr(name), fix="choose one of these")
    for key, plain in PLAIN.items():
        value = keys.get(key, plain)
        allowed = key == "variance_type" and value in ("fixed_small", "fixed_large")
        if value != plain and not allowed:
            fix = _INSTEAD.get(key, "leave it out, or draw with diffusers")
            raise ArgumentError(f"{name}: {key}", expected=repr(plain), found=repr(value), fix=fix)
    chosen = [kind for kind in SIGMAS if keys.get("use_lu_lambdas" if kind == "lu" else f"use_{kind}_sigmas")]
    if len(chosen) > 1:
        raise ArgumentError(
            f"{name}: sigmas", expected="one spacing", found=" and ".join(chosen), fix="switch on one of them"
        )
    known = {key: value for key, value in keys.items() if key in _KEYS and value is not None}
    return Config(**{**_DEFAULTS.get(name, {}), **known, "sigmas": chosen[0] if chosen else ""})


def table(name: str, keys: Mapping[str, Any], steps: int) -> Table:
    """Return the rows of the class ``name`` with diffusers' ``keys`` for ``steps`` steps."""
    config = make_config(name, keys)
    return SAMPLERS[name](config, steps)


_DEFAULTS: dict[str, dict[str, Any]] = {
    "DPMSolverSinglestepScheduler": {"lower_order_final": False},
    "PNDMScheduler": {"set_alpha_to_one": False},
    "TCDScheduler": {"eta": 0.3},
}


SHORT: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""Short names; each also with ``_karras``, ``_exponential`` or ``_beta`` where the class has these noise levels."""


def find(name: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the keys of a short name, of one of the A1111 list such as "DPM++ 2M Karras", or of a class.

    Raises ArgumentError for any other.
    """
    if name in SAMPLERS:
        return name, {}
    plain = "_".join(name.lower().replace("dpm++", "dpmpp").replace("euler a", "euler_a").split())
    stem, _, last = plain.rpartition("_")
    if last in SIGMAS and stem in SHORT:
        cls, keys = SHORT[stem]
        return cls, {**keys, f"use_{last}_sigmas": True}
    if plain in SHORT:
        return SHORT[plain]
    raise ArgumentError(
        "scheduler", expected=f"a class of diffusers or {' or '.join(SHORT)}", found=repr(name), fix="pass one of these"
    )
