"""What becomes of a picture before a client gets it: a hook of the product's own, marks, a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from koala_bundle.errors import ArgumentError

if TYPE_CHECKING:
    from koala_runtime import Recipe
    from koala_runtime.marking.mark import Mark

QUALITY = 90  # of JPEG and WebP


@dataclass(frozen=True)
class Finish:
    """``mark``: how files are marked as made by a model, None for not at all. ``on_image``: ``module:function``.

    The function is called with each picture and its recipe, and returns the picture to hand over, or raises
    ``koala_runtime.WithheldError``.
    """

    mark: Mark | None = None
    on_image: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What a pipeline call takes for it."""
        return {"mark": self.mark is not None, "on_image": self.hook()}

    def hook(self) -> Callable[..., Any] | None:
        """Return the function, None for none. Raises ArgumentError if there is no such function."""
        if self.on_image is None:
            return None
        module, _, name = self.on_image.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            found = error
        if not callable(found):
            raise ArgumentError(
                "on_image",
                expected="module:function, which Python can import",
                found=f"{self.on_image} ({found})",
                fix="name a function of an installed module",
            )
        hook: Callable[..., Any] = found
        return hook


def encode(image: Any, recipe: Recipe, format: str, compression: int | None, mark: Mark | None) -> bytes:
    """Return a picture as a PNG, JPEG or WebP file."""
    from koala_runtime import encode_picture

    quality = {} if format == "png" else {"quality": QUALITY if compression is None else compression}
    return encode_picture(image, recipe, format, mark, **quality)
