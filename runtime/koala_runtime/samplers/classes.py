"""diffusers' schedulers by their names; each is the function that computes it, and what it takes."""

from __future__ import annotations

from koala_bundle.schedulers import SchedulerSpec
from koala_runtime.samplers.consistency import lcm, tcd
from koala_runtime.samplers.deis import deis
from koala_runtime.samplers.diffusion import ddim, ddpm
from koala_runtime.samplers.dpm_solver import dpm_multistep, dpm_singlestep
from koala_runtime.samplers.euler import edm_euler, euler, euler_ancestral
from koala_runtime.samplers.multistep import lms, plms
from koala_runtime.samplers.scheduler import Scheduler
from koala_runtime.samplers.second_order import dpm2, dpm2_ancestral, heun
from koala_runtime.samplers.unipc import unipc


class EulerDiscreteScheduler(Scheduler):
    """Euler's method; KOALA's and SDXL's own."""

    sampler, takes_timesteps, takes_sigmas, has_whole_timesteps = euler, True, True, False


class EulerAncestralDiscreteScheduler(Scheduler):
    """Euler's method with fresh noise in every step; SDXL-Turbo's own."""

    sampler = euler_ancestral


class HeunDiscreteScheduler(Scheduler):
    """Heun's method; two evaluations a step."""

    sampler, evaluations, takes_timesteps, has_whole_timesteps = heun, 2, True, False


class KDPM2DiscreteScheduler(Scheduler):
    """DPM2; two evaluations a step."""

    sampler, evaluations = dpm2, 2


class KDPM2AncestralDiscreteScheduler(Scheduler):
    """DPM2 with fresh noise in every step; two evaluations a step."""

    sampler, evaluations = dpm2_ancestral, 2


class LMSDiscreteScheduler(Scheduler):
    """Linear multistep of order 4."""

    sampler = lms


class PNDMScheduler(Scheduler):
    """Pseudo linear multistep, without PNDM's Runge-Kutta start."""

    sampler = plms


class DDIMScheduler(Scheduler):
    """DDIM; ``eta`` of a call adds noise."""

    sampler = ddim


class DDPMScheduler(Scheduler):
    """DDPM: fresh noise in every step; for many steps."""

    sampler, takes_timesteps = ddpm, True


class DPMSolverMultistepScheduler(Scheduler):
    """DPM-Solver and DPM-Solver++ (2M, 3M, SDE)."""

    sampler, takes_timesteps = dpm_multistep, True


class DPMSolverSinglestepScheduler(Scheduler):
    """DPM-Solver and DPM-Solver++, singlestep (2S, 3S, SDE)."""

    sampler, takes_timesteps = dpm_singlestep, True


class DEISMultistepScheduler(Scheduler):
    """DEIS."""

    sampler = deis


class UniPCMultistepScheduler(Scheduler):
    """UniPC: a predictor and a corrector for one evaluation a step."""

    sampler = unipc


class LCMScheduler(Scheduler):
    """For models that were distilled as latent consistency models."""

    sampler, takes_timesteps = lcm, True


class TCDScheduler(Scheduler):
    """For models that were distilled by trajectory consistency; ``eta`` of a call is its gamma."""

    sampler, takes_timesteps = tcd, True


class EDMEulerScheduler(Scheduler):
    """Euler's method for models trained with EDM's preconditioning."""

    sampler, has_whole_timesteps = edm_euler, False


SCHEDULERS: dict[str, type[Scheduler]] = {cls.__name__: cls for cls in Scheduler.__subclasses__()}


def make_scheduler(spec: SchedulerSpec) -> Scheduler:
    """Return the scheduler that a checkpoint or a recipe names."""
    return SCHEDULERS[spec.class_name].from_config(spec.config)
