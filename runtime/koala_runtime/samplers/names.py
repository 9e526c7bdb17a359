"""Schedulers by short names, ``dpmpp_2m_karras``, and by those of the A1111 web UI, "DPM++ 2M Karras"."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import KEYS, SIGMA_SWITCHES
from koala_bundle.schedulers import SchedulerSpec
from koala_runtime.samplers.classes import SCHEDULERS, make_scheduler
from koala_runtime.samplers.scheduler import Scheduler


class Named(NamedTuple):
    """A class, the keys that make it the sampler of this name, and its name in the A1111 web UI or one like them."""

    class_name: str
    keys: Mapping[str, Any]
    label: str


_MULTI, _SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_MIDPOINT = {"solver_type": "midpoint"}
STEMS: Mapping[str, Named] = {
    "euler": Named("EulerDiscreteScheduler", {}, "Euler"),
    "euler_a": Named("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "heun": Named("HeunDiscreteScheduler", {}, "Heun"),
    "dpm2": Named("KDPM2DiscreteScheduler", {}, "DPM2"),
    "dpm2_a": Named("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a"),
    "lms": Named("LMSDiscreteScheduler", {}, "LMS"),
    "plms": Named("PNDMScheduler", {"skip_prk_steps": True}, "PLMS"),
    "ddim": Named("DDIMScheduler", {"clip_sample": False}, "DDIM"),
    "ddpm": Named("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}, "DDPM"),
    "dpmpp_2m": Named(_MULTI, {**_ODE, **_MIDPOINT, "solver_order": 2}, "DPM++ 2M"),
    "dpmpp_2m_sde": Named(_MULTI, {**_SDE, **_MIDPOINT, "solver_order": 2}, "DPM++ 2M SDE"),
    "dpmpp_2m_sde_heun": Named(_MULTI, {**_SDE, "solver_type": "heun", "solver_order": 2}, "DPM++ 2M SDE Heun"),
    "dpmpp_3m": Named(_MULTI, {**_ODE, **_MIDPOINT, "solver_order": 3}, "DPM++ 3M"),
    "dpmpp_3m_sde": Named(_MULTI, {**_SDE, **_MIDPOINT, "solver_order": 3}, "DPM++ 3M SDE"),
    "dpmpp_2s": Named(_SINGLE, {**_ODE, **_MIDPOINT, "solver_order": 2}, "DPM++ 2S"),
    "dpmpp_sde": Named(_SINGLE, {**_SDE, **_MIDPOINT, "solver_order": 2}, "DPM++ SDE"),
    "deis": Named(
        "DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho", "solver_order": 2}, "DEIS"
    ),
    "unipc": Named("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}, "UniPC"),
    "lcm": Named("LCMScheduler", {}, "LCM"),
    "tcd": Named("TCDScheduler", {}, "TCD"),
}
"""The names without a spacing of noise levels."""


def _with_spacings() -> dict[str, Named]:
    """Add ``_karras``, ``_exponential`` and ``_beta`` to the names of classes that have these noise levels."""
    names = {}
    for stem, (class_name, keys, label) in STEMS.items():
        plain = {switch: False for switch in SIGMA_SWITCHES if switch in KEYS[class_name]}
        names[stem] = Named(class_name, {**keys, **plain}, label)
        for switch in plain:
            kind = switch.split("_")[1]
            if kind != "lu":
                chosen = {**keys, **plain, switch: True}
                names[f"{stem}_{kind}"] = Named(class_name, chosen, f"{label} {kind.title()}")
    return names


NAMES: Mapping[str, Named] = _with_spacings()
"""By short name. A name decides what makes the sampler; the rest is that of the scheduler it replaces."""


def find(name: str, scheduler: Scheduler) -> Scheduler:
    """Return the scheduler of a short name, of one of the A1111 list, or of a class, in place of ``scheduler``.

    As ``from_config(scheduler.config, ...)`` in diffusers. Raises ArgumentError for any other name.
    """
    if name in SCHEDULERS:
        return SCHEDULERS[name].from_config(scheduler.config)
    plain = "_".join(name.lower().replace("dpm++", "dpmpp").split())
    if plain not in NAMES:
        stem, _, last = plain.rpartition("_")
        spacing = stem in NAMES and f"use_{last}_sigmas" in SIGMA_SWITCHES
        why = f", but {NAMES[stem].class_name} has no {last} sigmas" if spacing else ""
        raise ArgumentError(
            "scheduler",
            expected=f"a class of diffusers, or {', '.join(STEMS)}, some with _karras, _exponential or _beta",
            found=repr(name) + why,
            fix="pass one of these; `koala inspect BUNDLE` lists them",
        )
    named = NAMES[plain]
    return SCHEDULERS[named.class_name].from_config(scheduler.config, **named.keys)


def available(spec: SchedulerSpec) -> list[str]:
    """Return the short names that a model with this scheduler can be drawn with."""
    scheduler, found = make_scheduler(spec), []
    for name in NAMES:
        with suppress(ArgumentError):
            find(name, scheduler)
            found.append(name)
    return found


def label(spec: SchedulerSpec) -> str:
    """Return the name that people know a scheduler by: one of the A1111 list where there is one, else its class."""
    for named in NAMES.values():
        if named.class_name == spec.class_name and all(spec[key] == value for key, value in named.keys.items()):
            return named.label
    return spec.class_name
