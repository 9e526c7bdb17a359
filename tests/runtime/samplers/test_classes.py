"""diffusers' classes without torch: the same keys and defaults, the same ``from_config``, and refusals by name."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import diffusers
import numpy as np
import pytest

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import KEYS
from koala_bundle.schedulers import SchedulerSpec
from koala_runtime import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from koala_runtime.samplers import NAMES, Schedule, Scheduler, available, choose, label, make_scheduler
from koala_runtime.samplers.classes import SCHEDULERS
from tests.runtime.samplers.reference import SDXL, by_diffusers, by_table

CHECKPOINT = {**SDXL, "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
LIMITS = {"sigma_min", "sigma_max"}
"""Of the noise levels: many classes of diffusers read them from a configuration without having them as arguments."""
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:.*algorithm_type:FutureWarning")


@pytest.fixture
def euler() -> Scheduler:
    return make_scheduler(SchedulerSpec("EulerDiscreteScheduler", dict(CHECKPOINT)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_keys_and_defaults_are_those_of_diffusers(name: str) -> None:
    theirs = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(diffusers, name).__init__).parameters.items()
        if key != "self"
    }
    ours = {key: list(known.default) if known.default == () else known.default for key, known in KEYS[name].items()}
    assert {key: value for key, value in ours.items() if key in theirs or key not in LIMITS} == theirs


def test_there_is_a_class_for_every_row_of_the_table() -> None:
    assert [*SCHEDULERS] == [*KEYS]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_from_config_of_diffusers(euler: Scheduler, name: str) -> None:
    """The same latents as from diffusers' class, made of the same checkpoint with the keys of the name."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    named = NAMES[name]
    plain = diffusers.EulerDiscreteScheduler.from_config({"_class_name": "EulerDiscreteScheduler", **CHECKPOINT})
    theirs = getattr(diffusers, named.class_name).from_config(plain.config, **named.keys)
    chosen = choose(name, euler)
    assert choose(named.label, euler) == chosen
    assert label(chosen.spec) == named.label
    for key, value in chosen.spec.values.items():
        if key not in LIMITS:
            assert (list(value) if value == () else value) == theirs.config[key], key
    keys = {key: value for key, value in theirs.config.items() if key in KEYS[named.class_name] and key not in LIMITS}
    wanted = by_diffusers(named.class_name, keys, Schedule(3), double=True)
    assert np.abs(wanted - by_table(chosen.table(Schedule(3)))).max() < 3e-6 * np.abs(wanted).max()


def test_from_config_both_ways(euler: Scheduler) -> None:
    """What was set goes from class to class, defaults do not; ours takes diffusers' and diffusers takes ours."""
    solver = DPMSolverMultistepScheduler.from_config(euler.config, use_karras_sigmas=True)
    assert solver.config.use_karras_sigmas is True
    assert solver.config["beta_end"] == 0.012
    assert solver.config["set_alpha_to_one"] is False  # of another class: kept for it
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(solver.config)
    assert theirs.config.use_karras_sigmas is True
    assert theirs.config.steps_offset == 1
    assert choose(theirs, euler).spec.own == solver.spec.own
    back = EulerDiscreteScheduler.from_config(solver.config, use_karras_sigmas=False)
    assert back.table(Schedule(4)).updates.tolist() == euler.table(Schedule(4)).updates.tolist()
    assert choose("ddim", solver).spec["set_alpha_to_one"] is False
    default = EulerDiscreteScheduler(beta_end=0.012)  # its spacing is linspace by default, DDIM's is leading
    assert choose("ddim", default).spec["timestep_spacing"] == "leading"


def test_a_scheduler_is_immutable_and_says_what_it_is(euler: Scheduler) -> None:
    assert repr(EulerDiscreteScheduler(beta_end=0.012)) == "EulerDiscreteScheduler(beta_end=0.012)"
    with pytest.raises(TypeError, match=r"make another with from_config\(config, key=value\)"):
        euler.config["beta_end"] = 1
    with pytest.raises(TypeError, match="from_config"):
        euler.config.beta_end = 1
    with pytest.raises(AttributeError, match="gamma"):
        euler.config.gamma  # noqa: B018
    assert euler == make_scheduler(euler.spec)
    assert len({euler, make_scheduler(euler.spec)}) == 1
    assert euler != EulerDiscreteScheduler()


def test_a_model_lists_what_it_can_be_drawn_with(euler: Scheduler) -> None:
    assert available(euler.spec) == [*NAMES]
    zero_snr = SchedulerSpec("EulerDiscreteScheduler", {**CHECKPOINT, "rescale_betas_zero_snr": True})
    assert "dpmpp_2m" in available(zero_snr)  # leading: its first step is not at the last timestep
    assert "dpmpp_2m_karras" not in available(zero_snr)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "DDIMScheduler",
        {"clip_sample": False, "thresholding": True},
        "thresholding: expected false, found true; leave it",
    ),
    ("DDIMScheduler", {}, "clip_sample: expected false, found true; set it to false"),
    ("DDIMScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas: expected a key of this class, found use_karras"),
    (
        "EulerAncestralDiscreteScheduler",
        {"use_karras_sigmas": True},
        "take a class that has it: EulerDiscreteScheduler",
    ),
    ("HeunDiscreteScheduler", {"rescale_betas_zero_snr": True}, "expected a key of this class"),
    ("PNDMScheduler", {"skip_prk_steps": False}, "skip_prk_steps: expected true, found false; set it to true"),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}, "SDXL's U-Net gives no variance"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "expected one of them at most"),
    (
        "EulerDiscreteScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        "expected linear or scaled_linear, found squared",
    ),
    ("EulerDiscreteScheduler", {"beta_start": "small"}, "beta_start: expected a number from 0 to 1, found small"),
    ("EulerDiscreteScheduler", {"steps_offset": True}, "steps_offset: expected a whole number from 0"),
    ("EulerDiscreteScheduler", {"gamma": 1}, "gamma: expected a key of this class, found gamma=1; leave it out"),
    (
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "rescale_betas_zero_snr: expected false with prediction_type epsilon, found true; set v_prediction if",
    ),
    ("LCMScheduler", {"rescale_betas_zero_snr": True}, "expected false with prediction_type epsilon"),
    ("LCMScheduler", {"original_inference_steps": 2000}, "expected at most num_train_timesteps, 1000, found 2000"),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver"},
        "final_sigmas_type: expected sigma_min with dpmsolver",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "fast"},
        "algorithm_type: expected dpmsolver or dpmsolver[+][+] or",
    ),
    (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True},
        "use_flow_sigmas: expected false, found true; draw this",
    ),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "solver_order: expected 1 or 2 with sde-dpmsolver[+][+], as in diffusers, found 3",
    ),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "final_sigmas_type: expected sigma_min with solver_type bh1"),
    ("UniPCMultistepScheduler", {"predict_x0": False}, "final_sigmas_type: expected sigma_min with predict_x0 false"),
    ("UniPCMultistepScheduler", {"disable_corrector": [0]}, r"disable_corrector: expected .* found \[0\]"),
]


@pytest.mark.parametrize(("name", "keys", "said"), REFUSED)
def test_what_is_no_such_update_is_refused(name: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said) as raised:
        SCHEDULERS[name](**keys)
    assert str(raised.value).startswith(f"{name}: ")


def test_other_names_and_objects_are_refused(euler: Scheduler) -> None:
    for chosen, said in (
        ("dpm_adaptive", "scheduler: expected a class of diffusers, or euler, euler_a, .*, found 'dpm_adaptive'; pass"),
        (
            "euler_a_karras",
            "found 'euler_a_karras', but EulerAncestralDiscreteScheduler has no karras sigmas; pass one",
        ),
        ("DDIM Karras", "but DDIMScheduler has no karras sigmas"),
        (7, "scheduler: expected a name, or a scheduler of koala_runtime or diffusers that can be computed, found 7"),
        (diffusers.SASolverScheduler(), "found SASolverScheduler; pass a name such as dpmpp_2m"),
    ):
        with pytest.raises(ArgumentError, match=said):
            choose(chosen, euler)


def test_steps_that_a_class_cannot_take_are_refused(euler: Scheduler) -> None:
    far = EulerDiscreteScheduler.from_config(euler.config, use_karras_sigmas=True, sigma_max=9000.0)
    for scheduler, steps, said in (
        (
            choose("unipc", euler),
            Schedule(2, timesteps=(900.0, 100.0)),
            "timesteps: expected none with UniPCMultistepSched",
        ),
        (
            choose("dpmpp_2m", euler),
            Schedule(2, sigmas=(9.0, 1.0, 0.0)),
            "sigmas: expected none with DPMSolverMultistepSch",
        ),
        (
            choose("dpmpp_2m_karras", euler),
            Schedule(1, timesteps=(900.0,)),
            "timesteps: expected none with use_karras_sig",
        ),
        (
            choose("dpmpp_2m", euler),
            Schedule(1, timesteps=(900.5,)),
            "expected whole numbers from 999 down to 0, found",
        ),
        (
            euler,
            Schedule(2, timesteps=(100.0, 900.0)),
            "timesteps: expected numbers from 999 down to 0, found .* to little",
        ),
        (euler, Schedule(2, sigmas=(1.0, 9.0, 0.0)), "sigmas: expected noise levels that fall"),
        (
            choose("lcm", euler),
            Schedule(60),
            "num_inference_steps: expected at most original_inference_steps, 50, with LCM",
        ),
        (
            far,
            Schedule(1),
            "num_inference_steps 1: expected steps that magnify what they read by less than 4000, which float32",
        ),
    ):
        with pytest.raises(ArgumentError, match=said):
            scheduler.table(steps)
