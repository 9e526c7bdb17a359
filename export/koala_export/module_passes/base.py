"""The shape of a pass over a torch model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ModulePass:
    """``run`` takes a diffusers or transformers model and the bundle's dtype, and changes the model in place.

    It returns in a sentence what became of the model, or None where the pass does not apply.
    """

    name: str
    run: Callable[[Any, torch.dtype], str | None]
