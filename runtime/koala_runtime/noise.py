"""The noise of a seed: what ``torch.randn`` gives with a CPU generator, one draw after the other, without torch.

PyTorch (ATen ``normal_fill``) draws one 24-bit uniform per element from a Mersenne Twister and turns blocks of 16
into normals by Box-Muller: the first eight give the radius, the last eight the angle. A tail shorter than a block
is drawn again, overlapping the block before it. Equal to 5e-7 in float32 (PyTorch's vectorised log and sine round
differently).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16


def randn(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Return float32 normals of ``shape`` (at least 16 elements) as ``torch.randn`` does for this CPU seed."""
    return Stream(seed).randn(shape)


class Stream:
    """A CPU generator of torch's with a seed: successive draws are those of ``torch.randn`` with it."""

    def __init__(self, seed: int) -> None:
        # The engine keeps the low 32 bits of a seed; RandomState seeds the same MT19937 by the same recurrence.
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the next float32 normals, of ``shape`` (at least 16 elements)."""
        size = math.prod(shape)
        if size < _BLOCK:
            raise ValueError(f"randn draws blocks of {_BLOCK}; {size} elements take another path in torch")
        uniforms = _uniforms(self._twister, size)
        normals = np.empty(size, np.float32)
        whole = size - size % _BLOCK
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole != size:
            normals[-_BLOCK:] = _box_muller(_uniforms(self._twister, _BLOCK))
        return normals.reshape(shape)


def _uniforms(twister: np.random.RandomState, count: int) -> NDArray[np.float32]:
    bits = twister.randint(0, 2**32, count, dtype=np.uint32) & np.uint32(2**24 - 1)
    return bits.astype(np.float32) * np.float32(2**-24)


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = uniforms.reshape(-1, 2, _BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(np.float32(-2) * np.log1p(-first))
    angle = np.float32(2 * math.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
