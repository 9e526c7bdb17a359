"""Arrays that a caller gives, whatever library made them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError

Floats = NDArray[np.float32]


def read_latents(values: Any, shape: tuple[int, ...]) -> Floats:
    """Return latents as float32 of ``shape``. Raises ArgumentError as ``read_floats`` does."""
    return read_floats("latents", values, shape, "pass one set of latents per picture, at the bundle's size")


def read_floats(argument: str, values: Any, shape: tuple[int, ...], fix: str) -> Floats:
    """Return ``values`` as float32 of ``shape``. Raises ArgumentError for another shape or values not finite.

    A torch tensor may be on any device, of any float type, and part of a computation that records gradients.
    """
    try:
        for method in ("detach", "float", "cpu"):
            values = getattr(values, method)() if hasattr(values, method) else values
        array = np.asarray(values, np.float32)
    except Exception:  # whatever the other library raises
        raise ArgumentError(
            argument, expected="an array of float32", found=type(values).__name__, fix="pass a numpy array"
        ) from None
    if array.shape != shape:
        raise ArgumentError(argument, expected=f"shape {list(shape)}", found=str(list(array.shape)), fix=fix)
    if not np.isfinite(array).all():
        raise ArgumentError(argument, expected="finite values", found="NaN or infinity", fix=f"check the {argument}")
    return array
