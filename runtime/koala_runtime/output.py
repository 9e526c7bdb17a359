"""What a call returns: pictures on the host or on a device, and what repeats them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from koala_bundle.errors import ArgumentError
from koala_runtime.arguments import ImageHook
from koala_runtime.marking.watermark import add_watermark
from koala_runtime.recipe import Recipe
from koala_runtime.request import Request


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


def hand_over(batches: list[NDArray[Any]], request: Request, recipes: tuple[Recipe, ...]) -> Any:
    """Return what a call drew, latents or uint8 [n, height, width, 3] of each batch, as the request wants it.

    ``on_image`` sees each picture first, then those that are wanted marked get the watermark.
    """
    made = batches[0] if len(batches) == 1 else np.concatenate(batches)
    if request.output_type == "latent":
        return made
    pictures = list(made)
    if request.on_image is not None:
        pictures = [_checked(request.on_image, *each) for each in zip(pictures, recipes, strict=True)]
    if request.mark:
        pictures = [add_watermark(picture) for picture in pictures]
    if request.output_type == "pil":
        return [Image.fromarray(picture) for picture in pictures]
    return np.divide(np.stack(pictures), np.float32(255), dtype=np.float32)


def _checked(hook: ImageHook, picture: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    returned = hook(Image.fromarray(picture), recipe)
    size = (picture.shape[1], picture.shape[0])
    if not isinstance(returned, Image.Image) or returned.size != size:
        found = (
            f"{returned.width} x {returned.height}" if isinstance(returned, Image.Image) else type(returned).__name__
        )
        raise ArgumentError(
            "on_image",
            expected=f"a function that returns a PIL picture of {size[0]} x {size[1]}",
            found=f"one that returned {found}",
            fix="return the picture that it was given, or raise WithheldError",
        )
    return np.asarray(returned.convert("RGB"))
