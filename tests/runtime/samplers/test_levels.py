"""Noise levels and timesteps are those of diffusers' EulerDiscreteScheduler, for every configuration a bundle can have.

Golden values of SDXL's noise levels stand beside the comparison, so that both cannot drift together.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from koala_bundle.scheduler_keys import KEYS, TIMESTEP_SPACINGS
from koala_runtime.samplers.config import Config
from koala_runtime.samplers.levels import levels, train_sigmas

EXTRA = 61  # trailing spacing's float range then yields one step more than asked for
_EULER = KEYS["EulerDiscreteScheduler"]
BETA_SCHEDULES, INTERPOLATION_TYPES = (_EULER[key].allowed or () for key in ("beta_schedule", "interpolation_type"))
STEPS = (*range(1, 61), EXTRA, 100, 333, 979, 999, 1000)


def sdxl(
    timestep_spacing: str,
    interpolation_type: str = "linear",
    steps_offset: int = 0,
    beta_schedule: str = "scaled_linear",
) -> Config:
    return Config(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=beta_schedule,
        prediction_type="epsilon",
        interpolation_type=interpolation_type,
        timestep_spacing=timestep_spacing,
        steps_offset=steps_offset,
    )


# numpy tells diffusers' scheduler of a coming change; that is diffusers' to follow.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("spacing", "interpolation", "offset", "betas"),
    list(product(TIMESTEP_SPACINGS, INTERPOLATION_TYPES, (0, 1), BETA_SCHEDULES)),
)
def test_tables_are_those_of_diffusers(spacing: str, interpolation: str, offset: int, betas: str) -> None:
    from diffusers import EulerDiscreteScheduler

    spec = sdxl(spacing, interpolation, offset, betas)
    reference = EulerDiscreteScheduler(
        beta_start=spec.beta_start,
        beta_end=spec.beta_end,
        beta_schedule=betas,
        timestep_spacing=spacing,
        interpolation_type=interpolation,
        steps_offset=offset,
    )
    for steps in STEPS:
        reference.set_timesteps(steps)
        schedule = levels(spec, steps)
        assert schedule.timesteps.astype(np.float32).tolist() == reference.timesteps.tolist(), steps
        # log_linear gives diffusers one noise level more than its loop ever reads.
        read = reference.sigmas.numpy()[: len(schedule.timesteps) + 1]
        np.testing.assert_allclose(schedule.sigmas, read, rtol=2e-5, err_msg=f"{steps} steps")
        assert schedule.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma), rel=1e-5), steps


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("interpolation", INTERPOLATION_TYPES)
def test_noise_never_rises(spacing: str, interpolation: str) -> None:
    for steps in STEPS:
        schedule = levels(sdxl(spacing, interpolation), steps)
        assert len(schedule.sigmas) == len(schedule.timesteps) + 1
        # Not strictly: diffusers' extra trailing step may end on the same level twice.
        assert (np.diff(schedule.sigmas) <= 0).all(), steps


def test_only_trailing_spacing_may_add_a_step() -> None:
    for spacing in TIMESTEP_SPACINGS:
        added = {steps for steps in STEPS if len(levels(sdxl(spacing), steps).timesteps) != steps}
        assert added == ({EXTRA, 979} if spacing == "trailing" else set())
    assert len(levels(sdxl("trailing"), EXTRA).timesteps) == EXTRA + 1


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_training_noise_grows_with_the_timestep(betas: str) -> None:
    table = train_sigmas(sdxl("leading", beta_schedule=betas))
    assert table.shape == (1000,)
    assert (np.diff(table) > 0).all()


def test_ten_trailing_steps_of_lightning() -> None:
    schedule = levels(sdxl("trailing"), 10)
    assert schedule.timesteps.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    golden = [14.61465, 8.30281, 5.08777, 3.32108, 2.27646, 1.61289, 1.16058, 0.82986, 0.56929, 0.34167, 0]
    np.testing.assert_allclose(schedule.sigmas, golden, atol=1e-5)
    assert schedule.init_noise_sigma == pytest.approx(14.61465, abs=1e-5)


def test_twenty_five_leading_steps_of_koala() -> None:
    schedule = levels(sdxl("leading", steps_offset=1), 25)
    assert schedule.timesteps.tolist() == [*range(961, 0, -40)]
    np.testing.assert_allclose(schedule.sigmas[[0, -2, -1]], [11.67605, 0.04131, 0], atol=1e-5)
    assert schedule.init_noise_sigma == pytest.approx(11.718795, abs=1e-5)


def test_ten_leading_steps() -> None:
    assert levels(sdxl("leading", steps_offset=1), 10).init_noise_sigma == pytest.approx(8.450067, abs=1e-5)
