"""What diffusers' schedulers share, without torch: keys, ``config``, ``from_config``, and a table for a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import KEYS, SIGMA_SWITCHES
from koala_bundle.schedulers import SchedulerSpec
from koala_runtime.samplers.config import Config
from koala_runtime.samplers.table import Table

_READ = {field.name for field in fields(Config)} - {"eta", "timesteps", "sigmas", "spacing", "begin"}
_LARGEST = 4000  # the usual ones are below 15; larger ones take as many digits from the picture
_DEFAULTED = "_use_default_values"


@dataclass(frozen=True)
class Schedule:
    """What a call says of its steps: how many, or at which ``timesteps`` or noise levels; ``eta`` of DDIM and TCD.

    ``sigmas`` has one more than steps: its last is where the picture ends. ``skipped`` steps at first are left out,
    where a picture begins with another.
    """

    count: int
    eta: float = 0.0
    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    skipped: int = 0


class SchedulerConfig(dict[str, Any]):
    """The keys of a scheduler as diffusers shows them, ``config["beta_end"]`` or ``config.beta_end``.

    ``_use_default_values`` names those that were not set, which another class replaces by defaults of its own.
    """

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setitem__(self, key: str, value: Any) -> NoReturn:
        raise TypeError("a scheduler's config cannot be changed; make another with from_config(config, key=value)")

    def __setattr__(self, key: str, value: Any) -> NoReturn:
        self[key] = value


class Scheduler:
    """One of diffusers' schedulers, immutable. ``keys`` are those of the class in diffusers, with the same defaults.

    Raises ArgumentError for a key or a value that this class cannot compute.
    """

    sampler: ClassVar[Callable[[Config, int], Table]]
    takes_timesteps: ClassVar[bool] = False
    takes_sigmas: ClassVar[bool] = False
    has_whole_timesteps: ClassVar[bool] = True
    evaluations: ClassVar[int] = 1
    """Of the U-Net in a step; the last step has one."""

    def __init__(self, **keys: Any) -> None:
        self._set(keys, keys)

    def _set(self, keys: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
        name = type(self).__name__
        for key, value in changed.items():
            if key not in KEYS[name]:
                others = [each for each, known in KEYS.items() if key in known]
                raise ArgumentError(
                    f"{name}: {key}",
                    expected="a key of this class",
                    found=f"{key}={value!r}",
                    fix=f"leave it out, or take a class that has it: {', '.join(others)}" if others else "leave it out",
                )
        self.spec = SchedulerSpec(name, dict(keys))
        if misfit := self.spec.misfit():
            where = f"{name}: {misfit.key}"
            raise ArgumentError(where, expected=misfit.expected, found=misfit.found, fix=misfit.fix)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Return this class with the keys that were set in ``config``, of any class, and with ``changes``.

        ``config`` is that of a scheduler, from here or from diffusers.
        """
        defaults = config.get(_DEFAULTED, ())
        kept = {key: value for key, value in config.items() if key not in defaults and not key.startswith("_")}
        made = cls.__new__(cls)
        made._set(kept | changes, changes)
        return made

    @property
    def config(self) -> SchedulerConfig:
        """All keys with the values in force, and the keys of other classes that were set."""
        values = self.spec.values
        defaults = [key for key in values if key not in self.spec.config]
        return SchedulerConfig(self.spec.config | values | {_DEFAULTED: defaults, "_class_name": type(self).__name__})

    def counted(self, schedule: Schedule) -> int:
        """Return how many steps diffusers takes a share of for a picture that begins with another.

        Of timesteps that the call brings, it counts the evaluations of the U-Net.
        """
        return self._rows(schedule.count) if schedule.timesteps else schedule.count

    def leaves(self, schedule: Schedule) -> bool:
        """Whether any step is left to draw."""
        return schedule.skipped * self.evaluations < self._rows(schedule.count)

    def _rows(self, steps: int) -> int:
        return self.evaluations * (steps - 1) + 1

    def table(self, schedule: Schedule) -> Table:
        """Return the numbers of every step. Raises ArgumentError for steps that this class cannot take."""
        name, values = type(self).__name__, self.spec.values
        self._check(schedule, values)
        spacing = next((each.split("_")[1] for each in SIGMA_SWITCHES if values.get(each)), "")
        read = {key: value for key, value in values.items() if key in _READ}
        begin = schedule.skipped * self.evaluations
        config = Config(
            **read,
            spacing=spacing,
            eta=schedule.eta,
            timesteps=schedule.timesteps,
            sigmas=schedule.sigmas,
            begin=begin,
        )
        with np.errstate(all="ignore"):
            try:
                table = type(self).sampler(config, schedule.count).after(begin)
                largest = table.magnification
            except (ArithmeticError, ValueError):
                largest = math.nan
        if not largest < _LARGEST:
            raise ArgumentError(
                f"{name}: num_inference_steps {schedule.count}",
                expected=f"steps that magnify what they read by less than {_LARGEST}, which float32 bears",
                found="one that is not finite" if math.isnan(largest) else f"one by {largest:.0f}",
                fix="set final_sigmas_type sigma_min where it is zero, or with rescale_betas_zero_snr a solver that "
                "predicts x0 (dpmsolver++, predict_x0), or choose another scheduler",
            )
        return table

    def _check(self, schedule: Schedule, values: Mapping[str, Any]) -> None:
        name = type(self).__name__
        for argument, given, taken in (
            ("timesteps", schedule.timesteps, self.takes_timesteps),
            ("sigmas", schedule.sigmas, self.takes_sigmas),
        ):
            if given and not taken:
                classes = (each.__name__ for each in Scheduler.__subclasses__() if getattr(each, f"takes_{argument}"))
                others = ", ".join(classes)
                raise ArgumentError(
                    argument,
                    expected=f"none with {name}, as in diffusers",
                    found=f"{len(given)} of them",
                    fix=f"take a scheduler that has them: {others}",
                )
        switch = next((each for each in SIGMA_SWITCHES if values.get(each)), None)
        if schedule.timesteps and switch:
            raise ArgumentError(
                "timesteps", expected=f"none with {switch}", found=f"{len(schedule.timesteps)}", fix="switch it off"
            )
        last = values["num_train_timesteps"] - 1
        fits = all(
            0 <= time <= last and (time == int(time) or not self.has_whole_timesteps) for time in schedule.timesteps
        )
        if not (fits and _falls(schedule.timesteps) and _falls(schedule.sigmas)):
            kind = "whole numbers" if self.has_whole_timesteps else "numbers"
            raise ArgumentError(
                "timesteps" if schedule.timesteps else "sigmas",
                expected=f"{kind} from {last} down to 0" if schedule.timesteps else "noise levels that fall",
                found=str([*(schedule.timesteps or schedule.sigmas)])[:60],
                fix="pass them from much noise to little, each once",
            )
        most = values.get("original_inference_steps")
        if most is not None and schedule.count > most and not schedule.timesteps:
            raise ArgumentError(
                "num_inference_steps",
                expected=f"at most original_inference_steps, {most}, with {name}",
                found=str(schedule.count),
                fix="pass 4 to 8, which such models are made for",
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scheduler) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec.class_name)

    def __repr__(self) -> str:
        keys = ", ".join(f"{key}={value!r}" for key, value in self.spec.config.items() if key in self.spec.values)
        return f"{type(self).__name__}({keys})"


def _falls(numbers: Sequence[float]) -> bool:
    return bool((np.diff(numbers) < 0).all()) if len(numbers) > 1 else True
