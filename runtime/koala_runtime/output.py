"""What a call returns: pictures on the host or on a device, and what repeats them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from koala_runtime.recipe import Recipe


@dataclass(frozen=True)
class DeviceImages:
    """Pictures in the memory of a GPU, uint8 [n, height, width, 3], valid until the pipeline draws again or closes.

    ``torch.as_tensor(images, device="cuda")``, CuPy and Numba take it without a copy. ``owner`` is the pipeline, which
    frees that memory and lives at least as long as this object.
    """

    address: int
    shape: tuple[int, ...]
    owner: object = field(repr=False, compare=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the protocol (Numba's documentation); no stream, because the pictures are finished."""
        return {"shape": self.shape, "typestr": "|u1", "data": (self.address, False), "strides": None, "version": 3}


@dataclass(frozen=True)
class PipelineOutput:
    """``images``: a list of PIL images, or float32 [n, height, width, 3] in [0, 1], or DeviceImages, or latents.

    Latents are float32 [n, channels, height / 8, width / 8]. ``seed`` repeats all pictures; it is None where each has
    one of its own, or none. The ``recipes``, one per picture, repeat each. ``timings``, if they were asked for: seconds
    by the device's clock of each run of each component and of both copies.
    """

    images: Any
    seed: int | None
    recipes: tuple[Recipe, ...]
    timings: dict[str, list[float]] | None = None


def hand_over(pictures: NDArray[Any], output_type: str) -> Any:
    """Return a copy of uint8 [n, height, width, 3] as ``output_type`` wants it: ``pil`` or ``np``, or as it is."""
    if output_type == "latent":
        return pictures.copy()
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in pictures]
    return np.divide(pictures, np.float32(255), dtype=np.float32)


def join(batches: list[Any]) -> Any:
    """Return what ``hand_over`` made of several batches as one."""
    if len(batches) == 1:
        return batches[0]
    if isinstance(batches[0], list):
        return list(chain.from_iterable(batches))
    return np.concatenate(batches)
