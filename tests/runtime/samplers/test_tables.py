"""Every sampler's table against diffusers' own scheduler, on a model that any of them can be run on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import KEYS
from koala_runtime.samplers import Schedule, Scheduler
from koala_runtime.samplers.classes import SCHEDULERS
from tests.runtime.samplers.reference import SDXL, by_diffusers, by_table

# All of diffusers' own.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*algorithm_type:FutureWarning")
COUNTS = (1, 2, 3, 4, 7, 10, 15, 25, 50)
SWITCHES = ("", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
ODE = ("dpmsolver", "dpmsolver++")
SDE = ("sde-dpmsolver", "sde-dpmsolver++")
BOUND = 3e-6
BOUND_SDE = 6e-5
"""Of multistep SDE solvers, which magnify the last bit of a noise level: moving each of 51 levels by one bit moves what
third order draws in 50 steps by 1e-5 to 6e-5, and torch's square roots differ from NumPy's in that bit now and then."""


class Case(NamedTuple):
    """A class, diffusers' keys of it, and the steps of a call."""

    name: str
    keys: dict[str, Any]
    steps: Schedule

    @property
    def scheduler(self) -> Scheduler:
        return SCHEDULERS[self.name](**self.keys)


def kinds(name: str) -> Iterator[dict[str, Any]]:
    """Yield the keys that only some classes have."""
    solvers = itertools.product(("midpoint", "heun"), (1, 2, 3))
    match name:
        case "PNDMScheduler":
            yield from ({"skip_prk_steps": True, "set_alpha_to_one": one} for one in (False, True))
        case "DDIMScheduler":
            yield from ({"clip_sample": False, "set_alpha_to_one": one} for one in (False, True))
        case "DDPMScheduler":
            yield from ({"clip_sample": False, "variance_type": kind} for kind in ("fixed_small", "fixed_large"))
        case "DPMSolverMultistepScheduler":
            for (solver, order), kind in itertools.product(solvers, (*ODE, *SDE)):
                yield {"algorithm_type": kind, "solver_type": solver, "solver_order": order}
            yield {"euler_at_final": True}
            yield {"lower_order_final": False}
        case "DPMSolverSinglestepScheduler":
            for (solver, order), kind in itertools.product(solvers, (*ODE, SDE[1])):
                yield {"algorithm_type": kind, "solver_type": solver, "solver_order": order, "lower_order_final": True}
            yield {}
        case "UniPCMultistepScheduler":
            for solver, order, predict_x0 in itertools.product(("bh1", "bh2"), (1, 2, 3), (True, False)):
                yield {"solver_type": solver, "solver_order": order, "predict_x0": predict_x0}
            yield {"lower_order_final": False, "solver_order": 3}
        case "DEISMultistepScheduler":
            yield from ({"solver_order": order} for order in (1, 2, 3))
        case "EulerDiscreteScheduler":
            yield from ({}, {"interpolation_type": "log_linear"}, {"sigma_min": 0.1, "sigma_max": 12.0})
        case "EDMEulerScheduler":
            for kind, data in itertools.product(("karras", "exponential"), (0.5, 1.0)):
                yield {"sigma_schedule": kind, "sigma_data": data}
        case _:
            yield {}


def calls(name: str) -> Iterator[Schedule]:
    """Yield numbers of steps, then what only some classes take: their own timesteps and noise levels, and eta."""
    for count in COUNTS:
        yield Schedule(count)
    if name in ("DDIMScheduler", "TCDScheduler"):
        yield from (Schedule(count, eta=eta) for count, eta in itertools.product((2, 10), (0.3, 1.0)))
    if SCHEDULERS[name].takes_timesteps:
        own = (999.0, 850.0, 736.0, 645.0, 545.0, 455.0, 343.0, 233.0, 124.0, 24.0)
        yield from (Schedule(len(own[:count]), timesteps=own[:count]) for count in (1, 4, 10))
    if SCHEDULERS[name].takes_sigmas:
        levels = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.0)
        yield from (Schedule(len(chosen) - 1, sigmas=chosen) for chosen in (levels, levels[2:], levels[:5]))


def combinations(name: str) -> Iterator[tuple[dict[str, Any], Schedule]]:
    """Yield all combinations of the keys that a class has, and of calls."""
    known = KEYS[name]
    for prediction, kind, switch, zero_snr, spacing, end, steps in itertools.product(
        known["prediction_type"].allowed or (),
        kinds(name),
        (switch for switch in SWITCHES if not switch or switch in known),
        (False, True) if "rescale_betas_zero_snr" in known else (False,),
        known["timestep_spacing"].allowed or ("leading",) if "timestep_spacing" in known else ("",),
        ("zero", "sigma_min") if "final_sigmas_type" in known else ("",),
        calls(name),
    ):
        keys = {**(SDXL if "beta_start" in known else {}), "prediction_type": prediction, **kind}
        keys |= {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")} if spacing else {}
        keys |= {"final_sigmas_type": end} if end else {}
        keys |= {"rescale_betas_zero_snr": True} if zero_snr else {}
        keys |= {switch: True} if switch else {}
        yield keys, steps


def cases(name: str, every: int) -> Iterator[Case]:
    """Yield what the class computes of every so many combinations."""
    for keys, steps in itertools.islice(combinations(name), 0, None, every):
        with suppress(ArgumentError):
            SCHEDULERS[name](**keys).table(steps)
            yield Case(name, keys, steps)


def check(case: Case) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    wanted = by_diffusers(*case, double=True)
    error = np.abs(wanted - by_table(case.scheduler.table(case.steps))).max() / np.abs(wanted).max()
    stochastic = case.name == "DPMSolverMultistepScheduler" and case.keys.get("algorithm_type") in SDE
    assert error < (BOUND_SDE if stochastic else BOUND), (case, error)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_some_configurations(name: str) -> None:
    stride = max(1, sum(1 for _ in combinations(name)) // 16)
    for case in cases(name, stride - (stride + 1) % 2):  # odd, so that no axis is passed over
        check(case)


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEDULERS)
def test_thousands_of_configurations(name: str) -> None:
    for case in cases(name, 7 if sum(1 for _ in combinations(name)) > 3000 else 1):
        check(case)


@pytest.mark.full
def test_there_are_thousands() -> None:
    counts = {name: sum(1 for _ in combinations(name)) for name in SCHEDULERS}
    assert sum(count // (7 if count > 3000 else 1) for count in counts.values()) > 8000


@pytest.mark.parametrize("name", SCHEDULERS)
def test_float32_is_near_diffusers_own_pictures(name: str) -> None:
    """What users get from both, with the rounding of both."""
    keys = {**(SDXL if "beta_start" in KEYS[name] else {}), **next(kinds(name))}
    if "solver_order" in KEYS[name]:
        keys = SDXL
    case = Case(name, keys, Schedule(10))
    wanted = by_diffusers(*case)
    error = np.abs(wanted - by_table(case.scheduler.table(case.steps), np.float32)).max() / np.abs(wanted).max()
    assert error < 2e-5


@pytest.mark.parametrize("eta", [0.3, 0.7, 0.8, 0.9])
def test_levels_that_tcd_jumps_below_are_rounded_as_in_torch(eta: float) -> None:
    """0.2 of 495 is 99 in float32 and a little less in float64."""
    steps = Schedule(6, eta=eta, timesteps=(995.0, 795.0, 495.0, 255.0, 105.0, 15.0))
    check(Case("TCDScheduler", SDXL, steps))


@pytest.mark.parametrize("steps", [1, 4, 10, 25, 50])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_lu_levels_with_zero_terminal_snr_have_the_timesteps_of_diffusers(betas: str, steps: int) -> None:
    keys = {"beta_schedule": betas, "prediction_type": "v_prediction"}
    keys |= {"rescale_betas_zero_snr": True, "use_lu_lambdas": True}
    theirs = diffusers.DPMSolverMultistepScheduler(**keys)
    theirs.set_timesteps(steps)
    ours = SCHEDULERS["DPMSolverMultistepScheduler"](**keys).table(Schedule(steps)).timesteps
    assert ours.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_mistake_is_seen(name: str) -> None:
    """Any coefficient of x' that is a hundredth off moves the result by more than the bound."""
    case = next(case for case in cases(name, 1) if case.steps.count == 4)
    right = case.scheduler.table(case.steps)
    wanted = by_table(right)
    for row, used in np.argwhere(np.abs(right.updates[:, 0]) > 1e-2):
        before = right.updates[row, 0, used]
        right.updates[row, 0, used] = before * 1.01
        assert np.abs(by_table(right) - wanted).max() / np.abs(wanted).max() > BOUND, (row, used)
        right.updates[row, 0, used] = before
