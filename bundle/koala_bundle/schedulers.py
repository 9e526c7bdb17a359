"""A scheduler as diffusers saves it, and why one cannot be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from koala_bundle.scheduler_keys import KEYS, SIGMA_SWITCHES, shown


class Misfit(NamedTuple):
    """Why a configuration cannot be computed; the words of a KoalaError."""

    key: str
    expected: str
    found: str
    fix: str


@dataclass(frozen=True)
class SchedulerSpec:
    """A scheduler as diffusers saves it: its class and the keys that were set.

    ``config`` may hold keys of other classes, as diffusers keeps them: they come into force with that class.
    """

    class_name: str
    config: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        """Return the value in force of a key of the class: what was set, else its default."""
        known = KEYS[self.class_name][key]
        value = self.config.get(key, known.default)
        if value is None and isinstance(known.default, bool):  # diffusers' annotations allow null for switches
            value = known.default
        return known.aliases.get(value, value) if isinstance(value, str) else value

    @property
    def values(self) -> dict[str, Any]:
        """The value in force of every key of the class."""
        return {key: self[key] for key in KEYS[self.class_name]}

    @property
    def own(self) -> SchedulerSpec:
        """The same without the keys of other classes and those that say the default."""
        known = KEYS[self.class_name]
        kept = {key: value for key, value in self.config.items() if key in known and value != known[key].default}
        return SchedulerSpec(self.class_name, kept)

    def misfit(self) -> Misfit | None:
        """Return what cannot be computed, None if all can. The class must be one of ``KEYS``."""
        for key, known in KEYS[self.class_name].items():
            value = self[key]
            if not (known.takes(value) or value is known.default is None):
                return Misfit(key, known.expected, shown(value), known.fix or "set one of these")
        return self._conflict()

    def _conflict(self) -> Misfit | None:
        values = self.values
        chosen = [switch for switch in SIGMA_SWITCHES if values.get(switch)]
        if len(chosen) > 1:
            return Misfit(" and ".join(chosen), "one of them at most", f"{len(chosen)}", "switch on one of them")
        steps = values.get("original_inference_steps", 1)
        if steps > values["num_train_timesteps"]:
            expected = f"at most num_train_timesteps, {values['num_train_timesteps']}"
            return Misfit("original_inference_steps", expected, str(steps), "set a smaller number")
        # At the last timestep there is only noise, and to predict that says nothing of the picture.
        begins_later = values.get("timestep_spacing") == "leading" and "original_inference_steps" not in values
        begins_later = begins_later and not (chosen and "solver_order" in values)
        if values.get("rescale_betas_zero_snr") and values["prediction_type"] == "epsilon" and not begins_later:
            fix = "set v_prediction if the model was trained with it, or leave rescale_betas_zero_snr out"
            return Misfit("rescale_betas_zero_snr", "false with prediction_type epsilon", "true", fix)
        kind, end = values.get("algorithm_type", "++"), values.get("final_sigmas_type", "")
        third = kind if kind == "sde-dpmsolver" or "euler_at_final" not in values else ""
        if third.startswith("sde") and values["solver_order"] == 3:
            return Misfit("solver_order", f"1 or 2 with {kind}, as in diffusers", "3", "set 2")
        if end == "zero" and kind.startswith(("dpmsolver", "sde")) and not kind.endswith("++"):
            return Misfit("final_sigmas_type", f"sigma_min with {kind}", end, "set sigma_min, or use dpmsolver++")
        if end == "zero" and (values.get("predict_x0") is False or values.get("solver_type") == "bh1"):
            why = "solver_type bh1" if values["predict_x0"] else "predict_x0 false"
            return Misfit("final_sigmas_type", f"sigma_min with {why}", end, "set sigma_min: the last step is infinite")
        return None
