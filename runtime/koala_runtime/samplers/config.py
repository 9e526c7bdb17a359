"""A sampler's configuration in diffusers' words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The keys of diffusers' schedulers that change numbers, with the defaults of EulerDiscreteScheduler.

    ``sigmas`` is ``karras``, ``exponential``, ``beta`` or ``lu`` for ``use_karras_sigmas`` and so on, else empty.
    ``solver_order``, ``algorithm_type``, ``solver_type``, ``lower_order_final``, ``euler_at_final`` and ``predict_x0``
    are of DPM-Solver, DEIS and UniPC, ``eta`` of DDIM and TCD, ``variance_type`` of DDPM,
    ``original_inference_steps`` and ``timestep_scaling`` of LCM and TCD, ``sigma_min``, ``sigma_max`` and
    ``sigma_data`` of EDM.
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
    sigmas: str = ""
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool = True
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    predict_x0: bool = True
    eta: float = 0.0
    variance_type: str = "fixed_small"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
