"""A sampler's configuration in diffusers' words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The keys of diffusers' schedulers that change numbers, and what a call adds. A sampler reads those of its class.

    ``spacing`` is ``karras``, ``exponential``, ``beta`` or ``lu`` for ``use_karras_sigmas`` and so on, else empty;
    ``sigma_min`` and ``sigma_max`` limit it. Of a call: ``eta`` for DDIM and TCD; its own ``timesteps``, or noise
    levels ``sigmas`` of which the last is where the picture ends; ``begin``, the rows that it leaves out at first.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    interpolation_type: str = "linear"
    rescale_betas_zero_snr: bool = False
    spacing: str = ""
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool = True
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    variance_type: str = "fixed_small"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    rho: float = 7.0
    eta: float = 0.0
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    begin: int = 0
