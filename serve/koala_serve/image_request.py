"""What a client asks for, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""File formats of pictures and their media types."""
MAX_SEED = 2**32


@dataclass(frozen=True)
class ImageRequest:
    """``count`` pictures of one prompt, the first with ``seed``, the next with the number after it.

    Each picture's noise is its own, so that ``koala run --seed`` draws any of them alone. None stands for the bundle's
    default. ``image`` and ``mask`` are picture files; ``compression`` is the quality of JPEG and WebP files, 1 to 100.
    ``previews`` are spread evenly over the steps.
    """

    model: str
    prompt: str
    seed: int
    count: int = 1
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    eta: float | None = None
    weighted: bool = False
    image: bytes | None = None
    mask: bytes | None = None
    strength: float | None = None
    format: str = "png"
    compression: int | None = None
    previews: int = 0

    @property
    def shared(self) -> dict[str, Any]:
        """The arguments of a pipeline call that all pictures of a batch have in common."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "scheduler": self.scheduler,
            "eta": self.eta,
            "weighted": self.weighted,
            "strength": self.strength,
        }

    @property
    def shape(self) -> Hashable:
        """Requests of equal shape can be drawn in one batch."""
        return (*self.shared.values(), self.negative_prompt is None, self.image is None, self.mask is None)

    def seed_of(self, index: int) -> int:
        """Return the seed of picture ``index``."""
        return (self.seed + index) % MAX_SEED if self.seed >= 0 else self.seed + index
