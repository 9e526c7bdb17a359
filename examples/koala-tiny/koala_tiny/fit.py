"""A training loop that can be stopped at any time, and resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn."""

    name: str
    steps: int
    learning_rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.0  # decay per step of the averaged weights; 0 keeps none

    def shortened(self, share: float) -> Recipe:
        """Return the same with a share of the steps, for a trial."""
        steps = max(2, round(self.steps * share))
        return replace(self, steps=steps, warmup=min(self.warmup, steps // 2))


def fit(
    recipe: Recipe,
    modules: nn.ModuleDict,
    loss_of: Callable[[int], Tensor],
    folder: Path,
    look: Callable[[int], None] = lambda step: None,
    look_every: int = 1000,
) -> None:
    """Minimise ``loss_of(step)`` over the parameters of ``modules``; afterwards they hold the averaged weights.

    The state is saved every minute in ``folder/NAME.pt`` and found again; ``loss_of`` must draw its data from the
    step alone, so that a run that was stopped sees the same data as one that was not. ``look`` is called with the
    averaged weights in place, every ``look_every`` steps.
    """
    file = folder / f"{recipe.name}.pt"
    parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    average = [parameter.detach().clone() for parameter in parameters]
    step, running = 0, math.nan
    if file.is_file():
        state = torch.load(file, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, running = state["average"], state["step"], state["loss"]

    def save() -> None:
        state = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
        save_state({**state, "average": average, "step": step, "loss": running}, file)

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TextColumn("loss {task.fields[loss]:.5f}"), TimeElapsedColumn(), TimeRemainingColumn())
    saved = time.monotonic()
    with Progress(*columns, *times, refresh_per_second=1) as progress:
        bar = progress.add_task(recipe.name, total=recipe.steps, completed=step, loss=running)
        try:
            while step < recipe.steps:
                torch.manual_seed(step)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * _share(step, recipe)
                loss = loss_of(step)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                # A young average follows faster, so that the first weights are soon forgotten.
                decay = min(recipe.ema, (step + 1) / (step + 10)) if recipe.ema else 0.0
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
                step += 1
                value = float(loss.detach())
                running = value if math.isnan(running) else 0.98 * running + 0.02 * value
                progress.update(bar, completed=step, loss=running)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
                if step % look_every == 0 and step < recipe.steps:
                    _swap(parameters, average)
                    look(step)
                    _swap(parameters, average)
        finally:
            save()
    _swap(parameters, average)


def _share(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup))


@torch.no_grad()
def _swap(one: list[Any], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        held = a.detach().clone()
        a.copy_(b)
        b.copy_(held)


def save_state(state: Any, file: Path) -> None:
    """Write ``state`` to ``file``, whole or not at all."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)
