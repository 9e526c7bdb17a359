"""Pictures as arrays, and how far apart two of them are."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]
"""One picture [height, width, 3], or several with a leading axis."""


def psnr(reference: NDArray[Any], result: NDArray[Any], peak: float) -> float:
    """Return 10 log10(peak² / mean squared error) in decibels, at most 150: what float64 could tell apart."""
    error = float(np.mean((reference.astype(np.float64) - result.astype(np.float64)) ** 2))
    return 10 * math.log10(peak**2 / error) if error > peak**2 * 1e-15 else (150.0 if error >= 0 else math.nan)
