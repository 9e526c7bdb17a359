"""The numbers of a sampler for a number of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from koala_runtime.samplers.forms import HISTORY, Form


class Row(NamedTuple):
    """One evaluation of the U-Net: ``forms`` give x' and as many of h1', h2', h3' as are used.

    ``scale`` is c_in, ``draws`` whether diffusers draws noise in this step. ``level``: latents of a known picture x0
    are level[0] x0 + level[1] n before this row, with noise n.
    """

    timestep: float
    forms: Sequence[Form]
    level: tuple[float, float]
    scale: float = 1.0
    draws: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """A sampler's rows, of which there may be more than steps.

    ``timesteps`` float32 [rows], ``scales`` float64 [rows], ``updates`` float64 [rows, 4, 6], ``draws`` bool [rows],
    ``levels`` float64 [rows, 2]; ``init_noise_sigma`` scales the first latents of a picture that begins with noise.
    """

    timesteps: NDArray[np.float32]
    scales: NDArray[np.float64]
    updates: NDArray[np.float64]
    draws: NDArray[np.bool_]
    levels: NDArray[np.float64]
    init_noise_sigma: float = 1.0

    @property
    def history(self) -> int:
        """How many history tensors are read."""
        read = np.flatnonzero(np.any(self.updates[:, :, 1 : HISTORY + 1], axis=(0, 1)))
        return int(read.max()) + 1 if read.size else 0

    @property
    def magnification(self) -> float:
        """The most that the next latents are larger than a term of their sum, each in its own unit; NaN if not finite.

        Latents that the U-Net is given ``scales`` times are 1 / ``scales`` large.
        """
        if not (np.isfinite(self.updates).all() and np.isfinite(self.scales).all()):
            return math.nan
        after = np.append(self.scales[1:], 1.0)[:, None]
        sizes = np.column_stack([1 / self.scales, *[np.ones_like(self.scales)] * 2])
        return float((np.abs(self.updates[:, 0, [0, HISTORY + 1, HISTORY + 2]]) * sizes * after).max())

    def until(self, end: float | None, num_train_timesteps: int) -> Table:
        """Return the rows down to a share of the training timesteps; as in diffusers, 0 and 1 are no limit."""
        if not end or end == 1:
            return self
        return self._rows(0, int((self.timesteps >= round(num_train_timesteps - end * num_train_timesteps)).sum()))

    def after(self, rows: int) -> Table:
        """Return the table without its first rows."""
        return self._rows(rows, len(self.timesteps))

    def _rows(self, start: int, end: int) -> Table:
        part = slice(start, end)
        return replace(
            self,
            timesteps=self.timesteps[part],
            scales=self.scales[part],
            updates=self.updates[part],
            draws=self.draws[part],
            levels=self.levels[part],
        )


def make_table(rows: Sequence[Row], init_noise_sigma: float = 1.0) -> Table:
    """Return the arrays of ``rows``."""
    updates = np.zeros((len(rows), HISTORY + 1, HISTORY + 3))
    for update, row in zip(updates, rows, strict=True):
        update[: len(row.forms)] = row.forms
    return Table(
        timesteps=np.array([row.timestep for row in rows], np.float32),
        scales=np.array([row.scale for row in rows], float),
        updates=updates,
        draws=np.array([row.draws for row in rows], bool),
        levels=np.array([row.level for row in rows], float),
        init_noise_sigma=float(init_noise_sigma),
    )
