"""A faint watermark of 48 bits, which invisible-watermark's decoder reads (method ``dwtDct``).

The scheme: a Haar wavelet halves the chroma U of BT.601, so that every cell, 2x2 pixels, is twice their mean. Of the
4x4 cells of a block, 8x8 pixels, the largest but for the first carries a bit: its remainder modulo 36 is below 18 for a
0. Blocks take the bits in turn, row by row, and the reader takes the majority. In spite of the method's name, the
published decoder has no cosine transform.

diffusers writes its message with U around 0, but detectors read 8-bit pictures, with U around 128, where another cell
can be the largest and remainders differ. This writer works on what the detector sees. It moves the U of a whole block,
because JPEG flattens single cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from koala_bundle.errors import ArgumentError

MESSAGE = 0b101100111110110010010000011110111011000110011110
"""What Stability AI's demonstration and diffusers' StableDiffusionXLWatermarker write."""
LENGTH = 48  # bits
STEP = 36.0  # the quantiser's, in units of a cell; the decoder's default
BLOCK = 8  # pixels
MARGIN = 7.0  # of a cell from the values where its bit changes, in units of a cell, to outlast JPEG
_CB = 0.492  # U = 0.492 (B - Y) with Y of BT.601: OpenCV's BGR2YUV
_BLUE = 1 / _CB  # how much blue rises with U at the same Y and V
_GREEN = -0.114 / 0.587 / _CB  # and green
_ENOUGH = 41  # of 48 bits: one in three million readings of fair coins

Bits = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Watermark:
    """What a picture says: ``votes`` float64 [48], the share of blocks that read each bit as 1; ``bits`` bool [48]."""

    votes: NDArray[np.float64]

    @property
    def bits(self) -> Bits:
        """The majority of the blocks, as invisible-watermark's decoder counts it."""
        return self.votes * 255 > 127

    @property
    def certainty(self) -> float:
        """How far the blocks agree, from 0 (they are divided) to 1 (every block says the same of its bit)."""
        return float(np.abs(2 * self.votes - 1).mean())

    @property
    def matches(self) -> int:
        """How many of the 48 bits are those of MESSAGE; 24 are expected by chance."""
        return int((self.bits == message_bits()).sum())

    @property
    def chance(self) -> float:
        """The probability that so many bits, or more, match where each is a fair coin."""
        return float(sum(comb(LENGTH, n) for n in range(self.matches, LENGTH + 1)) / 2**LENGTH)

    @property
    def found(self) -> bool:
        """Whether the picture carries MESSAGE: at least 41 bits match."""
        return self.matches >= _ENOUGH


def message_bits(message: int = MESSAGE) -> Bits:
    """Return 48 bits, the highest first."""
    return np.array([message >> (LENGTH - 1 - place) & 1 for place in range(LENGTH)], bool)


def check_size(height: int, width: int) -> None:
    """Raise ArgumentError for a picture with fewer than 48 whole blocks."""
    if (height // BLOCK) * (width // BLOCK) < LENGTH:
        raise ArgumentError(
            "mark",
            expected=f"pictures of {LENGTH} whole blocks of {BLOCK} x {BLOCK} pixels, such as 56 x 56, or more",
            found=f"{width} x {height}",
            fix="draw larger pictures, or leave the mark out",
        )


def add_watermark(pixels: NDArray[np.uint8], message: int = MESSAGE) -> NDArray[np.uint8]:
    """Return a copy of uint8 [height, width, 3] (RGB) with the watermark. Raises ArgumentError if it is too small.

    The same pixels give the same pixels on every machine that computes float64 alike.
    """
    height, width = pixels.shape[:2]
    check_size(height, width)
    rows, columns = height // BLOCK, width // BLOCK
    inside = np.s_[: rows * BLOCK, : columns * BLOCK]
    rgb = pixels[inside].astype(np.float64)
    rise = _rises(_cells(rgb), rgb, message).reshape(rows, columns)
    rise = np.repeat(np.repeat(rise, BLOCK, 0), BLOCK, 1)
    made = pixels.copy()
    changed = rgb + rise[..., None] * np.array([0, _GREEN, _BLUE])
    made[inside] = np.where(rise[..., None] == 0, rgb, np.clip(np.rint(changed), 0, 255)).astype(np.uint8)
    return made


def read_watermark(pixels: NDArray[np.uint8]) -> Watermark:
    """Read uint8 [height, width, 3] (RGB) of the size that was drawn. Raises ArgumentError if it is too small.

    Where invisible-watermark's decoder reads (65,536 pixels or more), it reads the same bits.
    """
    check_size(*pixels.shape[:2])
    inside = np.s_[: pixels.shape[0] // BLOCK * BLOCK, : pixels.shape[1] // BLOCK * BLOCK]
    largest = _cells(pixels[inside].astype(np.float64))[:, 1:].max(1)
    ones = largest % STEP > STEP / 2
    return Watermark(np.array([ones[place::LENGTH].mean() for place in range(LENGTH)]))


def _cells(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [blocks, 16]: the Haar approximation of U, rounded to 8 bits around 128 as the decoder's is."""
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    chroma = np.clip(np.rint(_CB * (rgb[..., 2] - luma) + 128), 0, 255)
    height, width = chroma.shape
    halves = chroma.reshape(height // 2, 2, width // 2, 2).sum((1, 3)) / 2
    return _blocks(halves, 4)


def _blocks(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return [height, width] as [blocks, side * side], row by row."""
    height, width = values.shape
    return values.reshape(height // side, side, width // side, side).swapaxes(1, 2).reshape(-1, side * side)


def _rises(cells: NDArray[np.float64], rgb: NDArray[np.float64], message: int) -> NDArray[np.float64]:
    """Return by how much U rises in each block, [blocks]: the way to the nearest values that say the block's bit.

    Of the values above and those below, the nearer ones that blue and green of 8 bits can hold.
    """
    bits = message_bits(message)[np.arange(len(cells)) % LENGTH]
    value = cells[:, 1:].max(1)
    first = STEP / 2 * bits  # remainders from here to half a step further say the bit
    lowest = first + MARGIN + np.floor((value - first) / STEP) * STEP
    highest = lowest + STEP / 2 - 2 * MARGIN
    up = np.where(value <= highest, np.maximum(lowest - value, 0), lowest + STEP - value) / 2
    down = np.where(value >= lowest, np.maximum(value - highest, 0), value - highest + STEP) / 2
    blue, green = (_blocks(rgb[..., channel], BLOCK) for channel in (2, 1))
    room_up = np.minimum((255 - blue.max(1)) / _BLUE, green.min(1) / -_GREEN)
    room_down = np.minimum(blue.min(1) / _BLUE, (255 - green.max(1)) / -_GREEN)
    cost_up, cost_down = (way + 100 * np.maximum(way - room, 0) for way, room in ((up, room_up), (down, room_down)))
    rises: NDArray[np.float64] = np.where(cost_up <= cost_down, up, -down)
    return rises
