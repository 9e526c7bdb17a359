"""Every sampler's table against diffusers' own scheduler, on a model that any of them can be run on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from koala_bundle.errors import ArgumentError
from koala_runtime.samplers.names import SAMPLERS, table
from tests.runtime.samplers.reference import SDXL, by_diffusers, by_table

# All of diffusers' own.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*algorithm_type:FutureWarning")
WITHOUT_SIGMAS = {
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "EDMEulerScheduler"),
    "EulerAncestralDiscreteScheduler",
}
BOUNDS = {"KDPM2AncestralDiscreteScheduler": 2e-4, "DPMSolverMultistepScheduler": 2e-5}
"""Where diffusers rounds to float32 before it computes: levels between steps, and differences of third order."""
BOUND = 2e-6


def kinds(name: str) -> Iterator[dict[str, Any]]:
    """Yield the keys that only some classes have."""
    if name == "PNDMScheduler":
        yield {"skip_prk_steps": True}
    elif name in ("DDIMScheduler", "DDPMScheduler"):
        yield {"clip_sample": False}
    elif name.startswith("DPMSolver"):
        types = ("dpmsolver++", "sde-dpmsolver++"), ("midpoint", "heun"), (1, 2, 3)
        for algorithm, solver, order in itertools.product(*types):
            if not (name == "DPMSolverSinglestepScheduler" and algorithm.startswith("sde") and order == 3):
                yield {"algorithm_type": algorithm, "solver_type": solver, "solver_order": order}
        yield {"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"}
    elif name.startswith("UniPC"):
        for solver, order, predict_x0 in itertools.product(("bh1", "bh2"), (1, 2, 3), (True, False)):
            # With the last level at zero, diffusers gives NaN for these.
            ends = {"final_sigmas_type": "sigma_min"} if solver == "bh1" or not predict_x0 else {}
            yield {"solver_type": solver, "solver_order": order, "predict_x0": predict_x0, **ends}
    elif name.startswith("DEIS"):
        for order in (1, 2, 3):
            yield {"solver_order": order, "solver_type": "logrho", "algorithm_type": "deis"}
    else:
        yield {}


def cases(name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield diffusers' keys and numbers of steps."""
    if name == "EDMEulerScheduler":
        for prediction, steps in itertools.product(("epsilon", "v_prediction"), (1, 2, 4, 10, 25, 50)):
            yield {"prediction_type": prediction}, steps
        return
    spacings = ("leading", "trailing", "linspace")
    sigmas = ("", "karras", "exponential", "beta")
    for prediction, spacing, sigma in itertools.product(("epsilon", "v_prediction"), spacings, sigmas):
        if sigma and name in WITHOUT_SIGMAS:
            continue
        for kind, steps in itertools.product(kinds(name), (1, 2, 3, 4, 10, 25)):
            keys = {**SDXL, "prediction_type": prediction, "timestep_spacing": spacing, **kind}
            keys["steps_offset"] = int(spacing == "leading")
            if sigma:
                keys[f"use_{sigma}_sigmas"] = True
            yield keys, steps


def check(name: str, chosen: list[tuple[dict[str, Any], int]]) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    eta = {"eta": 0.3} if name == "TCDScheduler" else {}
    for keys, steps in chosen:
        wanted = by_diffusers(name, keys, steps, double=True, **eta)
        error = np.abs(wanted - by_table(table(name, keys, steps))).max() / np.abs(wanted).max()
        assert error < BOUNDS.get(name, BOUND), (keys, steps, error)


@pytest.mark.parametrize("name", SAMPLERS)
def test_some_configurations(name: str) -> None:
    chosen = [*cases(name)]
    check(name, chosen[:: max(1, len(chosen) // 20)])


@pytest.mark.full
@pytest.mark.parametrize("name", SAMPLERS)
def test_all_configurations(name: str) -> None:
    check(name, [*cases(name)])


def test_there_are_thousands() -> None:
    assert sum(1 for name in SAMPLERS for _ in cases(name)) > 3000


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "EDMEulerScheduler"])
def test_a_mistake_is_seen(name: str) -> None:
    """Any coefficient of x' that is a hundredth off moves the result by more than the bound."""
    keys, steps = next((keys, steps) for keys, steps in cases(name) if steps == 4)
    right = table(name, keys, steps)
    wanted = by_table(right)
    for row, used in np.argwhere(np.abs(right.updates[:, 0]) > 1e-2):
        before = right.updates[row, 0, used]
        right.updates[row, 0, used] = before * 1.01
        assert np.abs(by_table(right) - wanted).max() / np.abs(wanted).max() > BOUND, (row, used)
        right.updates[row, 0, used] = before


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("DDIMScheduler", {"thresholding": True}, "DDIMScheduler: thresholding: expected False, found True; leave it"),
        ("DDIMScheduler", {"clip_sample": True}, "clip_sample: expected False, found True; set it to false"),
        ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps: expected True, found False; set it to true"),
        (
            "DDPMScheduler",
            {"variance_type": "learned_range"},
            "variance_type: expected None, found 'learned_",
        ),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "sigmas: expected one spacing, found karras and beta; switch on one of them",
        ),
        ("SASolverScheduler", {}, "scheduler: expected EulerDiscreteScheduler or .* found 'SASolverScheduler'"),
    ],
)
def test_what_is_no_such_update_is_refused(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        table(name, keys, 4)
