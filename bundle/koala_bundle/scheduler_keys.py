"""diffusers' schedulers that can be computed: the keys of each class, their defaults, and the values that are known.

Defaults are those of diffusers 0.42. What is not in the table is refused by name, since a value that is passed over in
silence is another picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
SIGMA_SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Each chooses another spacing of the noise levels; one at most."""


@dataclass(frozen=True)
class Key:
    """What a key may be.

    ``allowed``: its values, or (least, most) of a number, ``whole`` or not; None for any value, of a key that these
    classes do not read. ``aliases``: what diffusers replaces, as it says of itself. ``fix``: advice for other values.
    """

    default: Any
    allowed: tuple[Any, ...] | None = None
    number: bool = False
    whole: bool = False
    aliases: Mapping[Any, Any] = field(default_factory=dict)
    fix: str = ""

    def takes(self, value: Any) -> bool:
        """Whether ``value`` is allowed; true and 1 are not the same."""
        if self.allowed is None:
            return True
        if self.number:
            kind = int if self.whole else int | float
            return isinstance(value, kind) and type(value) is not bool and self.allowed[0] <= value <= self.allowed[1]
        return any(type(value) is type(each) and value == each for each in self.allowed)

    @property
    def expected(self) -> str:
        """The allowed values in words."""
        assert self.allowed is not None
        if self.number:
            least, most = self.allowed
            return f"a {'whole ' if self.whole else ''}number from {least:g} to {most:g}"
        return " or ".join(map(shown, self.allowed))


_TRAINED = "draw this checkpoint with diffusers: it was trained so, and another value gives other pictures"
_DIFFUSERS = "leave it out, or draw with diffusers"
_PIXELS = "leave it out: it is for models that draw pixels; latents have no bounds"


def _switch(default: bool = False) -> Key:
    return Key(default, (False, True))


def _only(value: Any, fix: str = _DIFFUSERS) -> Key:
    return Key(value, (value,), fix=fix)


def _noise(start: float = 0.0001, end: float = 0.02, schedule: str = "linear") -> dict[str, Key]:
    """The noise that a model was trained with."""
    return {
        "num_train_timesteps": Key(1000, (1, 1_000_000), number=True, whole=True),
        "beta_start": Key(start, (0, 1), number=True),
        "beta_end": Key(end, (0, 1), number=True),
        "beta_schedule": Key(schedule, ("linear", "scaled_linear"), fix=_TRAINED),
        "trained_betas": _only(None, _TRAINED),
    }


def _steps(spacing: str) -> dict[str, Key]:
    return {
        "timestep_spacing": Key(spacing, TIMESTEP_SPACINGS),
        "steps_offset": Key(0, (0, 1_000_000), number=True, whole=True),
    }


_EPSILON_V = Key("epsilon", ("epsilon", "v_prediction"), fix=_TRAINED)
_ANY_PREDICTION = Key("epsilon", ("epsilon", "v_prediction", "sample"), fix=_TRAINED)
_SIGMA_LIMIT = Key(None, (1e-6, 1e4), number=True)
_SIGMAS = {
    **{switch: _switch() for switch in SIGMA_SWITCHES[:3]},
    # Not in the signature of most classes, but read by all that space noise levels.
    "sigma_min": _SIGMA_LIMIT,
    "sigma_max": _SIGMA_LIMIT,
}
_ZERO_SNR = {"rescale_betas_zero_snr": _switch()}
_ENDS = {"final_sigmas_type": Key("zero", ("zero", "sigma_min"))}
_UNBOUNDED = {
    "thresholding": _only(False, _PIXELS),
    "dynamic_thresholding_ratio": Key(0.995),
    "sample_max_value": Key(1.0),
}


def _unclipped(default: bool) -> dict[str, Key]:
    fix = "set it to false, as SDXL's configuration does: latents have no bounds"
    return {"clip_sample": Key(default, (False,), fix=fix), "clip_sample_range": Key(1.0)}


_NO_FLOW = {
    "use_flow_sigmas": _only(False, _TRAINED),
    "use_dynamic_shifting": _only(False, _TRAINED),
    "flow_shift": Key(1.0),
    "time_shift_type": Key("exponential"),
}
_ORDER = {"solver_order": Key(2, (1, 3), number=True, whole=True)}
_VARIANCE = "use fixed_small or fixed_large: SDXL's U-Net gives no variance"
_NO_VARIANCE = Key(None, (None, "fixed_small", "fixed_large"), fix=_VARIANCE)
_OF_DPM = {
    "solver_type": Key("midpoint", ("midpoint", "heun"), aliases=dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")),
    "lambda_min_clipped": _only(-math.inf),
    "variance_type": _NO_VARIANCE,
}


def _algorithm(*names: str) -> dict[str, Key]:
    return {"algorithm_type": Key("dpmsolver++", names, aliases={"deis": "dpmsolver++"})}


_K_DIFFUSION = {**_noise(0.00085, 0.012), "prediction_type": _EPSILON_V, **_SIGMAS, **_steps("linspace")}
_CONSISTENCY = {
    **_noise(0.00085, 0.012, "scaled_linear"),
    "prediction_type": _ANY_PREDICTION,
    "original_inference_steps": Key(50, (1, 1_000_000), number=True, whole=True),
    "timestep_scaling": Key(10.0, (1e-6, 1e6), number=True),
    # Read by neither: the end and the spacing are those of the distillation.
    "set_alpha_to_one": Key(True),
    "timestep_spacing": Key("leading"),
    "steps_offset": Key(0),
    **_unclipped(False),
    **_UNBOUNDED,
    **_ZERO_SNR,
}
KEYS: Mapping[str, Mapping[str, Key]] = {
    "EulerDiscreteScheduler": {
        **_noise(),
        "prediction_type": _EPSILON_V,
        "interpolation_type": Key("linear", ("linear", "log_linear")),
        **_SIGMAS,
        **_steps("linspace"),
        "timestep_type": _only("discrete", _TRAINED),
        **_ZERO_SNR,
        **_ENDS,
    },
    "EulerAncestralDiscreteScheduler": {
        **_noise(),
        "prediction_type": _EPSILON_V,
        **_steps("linspace"),
        **_ZERO_SNR,
    },
    "HeunDiscreteScheduler": {**_K_DIFFUSION, **_unclipped(False)},
    "KDPM2DiscreteScheduler": _K_DIFFUSION,
    "KDPM2AncestralDiscreteScheduler": _K_DIFFUSION,
    "LMSDiscreteScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        **_SIGMAS,
        **_steps("linspace"),
    },
    "PNDMScheduler": {
        **_noise(),
        "prediction_type": _EPSILON_V,
        "skip_prk_steps": Key(False, (True,), fix="set it to true, as SDXL's configuration does"),
        "set_alpha_to_one": _switch(),
        **_steps("leading"),
    },
    "DDIMScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        "set_alpha_to_one": _switch(True),
        **_steps("leading"),
        **_unclipped(True),
        **_UNBOUNDED,
        **_ZERO_SNR,
    },
    "DDPMScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        "variance_type": Key("fixed_small", ("fixed_small", "fixed_large"), fix=_VARIANCE),
        **_steps("leading"),
        **_unclipped(True),
        **_UNBOUNDED,
        **_ZERO_SNR,
    },
    "DPMSolverMultistepScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        **_ORDER,
        **_algorithm("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        **_OF_DPM,
        "lower_order_final": _switch(True),
        "euler_at_final": _switch(),
        **_SIGMAS,
        "use_lu_lambdas": _switch(),
        **_ENDS,
        **_steps("linspace"),
        **_UNBOUNDED,
        **_NO_FLOW,
        **_ZERO_SNR,
    },
    "DPMSolverSinglestepScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        **_ORDER,
        **_algorithm("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
        **_OF_DPM,
        "lower_order_final": _switch(),
        **_SIGMAS,
        **_ENDS,
        **_UNBOUNDED,
        **_NO_FLOW,
    },
    "DEISMultistepScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        **_ORDER,
        "algorithm_type": Key("deis", ("deis",), aliases=dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis")),
        "solver_type": Key("logrho", ("logrho",), aliases=dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")),
        "lower_order_final": _switch(True),
        **_SIGMAS,
        **_steps("linspace"),
        **_UNBOUNDED,
        **_NO_FLOW,
    },
    "UniPCMultistepScheduler": {
        **_noise(),
        "prediction_type": _ANY_PREDICTION,
        **_ORDER,
        "predict_x0": _switch(True),
        "solver_type": Key("bh2", ("bh1", "bh2"), aliases=dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")),
        "lower_order_final": _switch(True),
        "disable_corrector": Key((), ((), []), fix=_DIFFUSERS),
        "solver_p": _only(None),
        **_SIGMAS,
        **_ENDS,
        **_steps("linspace"),
        **_UNBOUNDED,
        **_NO_FLOW,
        "shift_terminal": _only(None, _TRAINED),
        **_ZERO_SNR,
    },
    "LCMScheduler": _CONSISTENCY,
    "TCDScheduler": _CONSISTENCY,
    "EDMEulerScheduler": {
        "num_train_timesteps": Key(1000, (1, 1_000_000), number=True, whole=True),
        "prediction_type": _EPSILON_V,
        "sigma_min": Key(0.002, (1e-6, 1e4), number=True),
        "sigma_max": Key(80.0, (1e-6, 1e4), number=True),
        "sigma_data": Key(0.5, (1e-6, 1e4), number=True),
        "sigma_schedule": Key("karras", ("karras", "exponential")),
        "rho": Key(7.0, (1e-3, 1e3), number=True),
        **_ENDS,
    },
}
"""By class, in the order in which they are listed to users."""


def shown(value: object) -> str:
    """Return a value as JSON has it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
