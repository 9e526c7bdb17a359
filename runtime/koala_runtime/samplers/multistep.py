"""Earlier slopes instead of further evaluations: LMS on noise levels, and PLMS (PNDM without its Runge-Kutta start)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.euler import scale
from koala_runtime.samplers.forms import H1, H2, H3, PREDICTION, Form, X, slope
from koala_runtime.samplers.levels import alphas_cumprod, levels, share_level, whole_timesteps
from koala_runtime.samplers.table import Row, Table, make_table

ORDER = 4
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(2)  # exact to degree 3, which four points give


def lms(config: Config, steps: int) -> Table:
    """Adams-Bashforth on uneven levels: the integral of the polynomial through the last four slopes."""
    found = levels(config, steps, last="always zero")
    rows = []
    for index, time in enumerate(found.timesteps):
        sigma, order = found.sigmas[index], min(index + 1, ORDER)
        now = slope(sigma, config.prediction_type)
        points = [found.sigmas[index - back] for back in range(order)]
        weights = _integrals(points, sigma, found.sigmas[index + 1])
        moved = X + sum((w * each for w, each in zip(weights, (now, H1, H2, H3), strict=False)), 0 * X)
        rows.append(Row(time, [moved, now, H1, H2], (1, sigma), scale(sigma)))
    return make_table(rows, found.init_noise_sigma)


def _integrals(points: Sequence[float], start: float, end: float) -> list[float]:
    """Return the integral from ``start`` to ``end`` of each Lagrange polynomial of ``points``, by Gauss-Legendre."""
    half = (end - start) / 2
    at = start + half * (_NODES + 1)
    found = []
    for k, own in enumerate(points):
        others = [point for j, point in enumerate(points) if j != k]
        values = math.prod([(at - point) / (own - point) for point in others], start=np.ones_like(at))
        found.append(float(half * (_WEIGHTS * values).sum()))
    return found


def plms(config: Config, steps: int) -> Table:
    """Pseudo linear multistep, arXiv 2202.09778 (equation 11 moves x); the second timestep is evaluated twice."""
    shares, apart = alphas_cumprod(config).astype(float), config.num_train_timesteps // steps
    last = 1.0 if config.set_alpha_to_one else shares[0]
    rising = whole_timesteps(config, steps)[::-1]
    times = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1]

    def moved(x: Form, time: int, to: int, noise: Form) -> Form:
        here, there = shares[time], shares[to] if to >= 0 else last
        if config.prediction_type == "v_prediction":
            noise = math.sqrt(here) * noise + math.sqrt(1 - here) * x
        below = here * math.sqrt(1 - there) + math.sqrt(here * (1 - here) * there)
        found: Form = math.sqrt(there / here) * x - (there - here) / below * noise
        return found

    blends = (
        PREDICTION,
        (3 * PREDICTION - H1) / 2,
        (23 * PREDICTION - 16 * H1 + 5 * H2) / 12,
        (55 * PREDICTION - 59 * H1 + 37 * H2 - 9 * H3) / 24,
    )
    rows = []
    for row, time in enumerate(map(int, times)):
        index = max(row - config.begin, 0)
        if index == 0:  # h1 keeps x, h2 the first prediction
            forms = [moved(X, time, time - apart, PREDICTION), X, PREDICTION]
        elif index == 1:
            forms = [moved(H1, time + apart, time, (PREDICTION + H2) / 2), H2]
        else:
            forms = [moved(X, time, time - apart, blends[min(index - 1, 3)]), PREDICTION, H1, H2]
        rows.append(Row(time, forms, share_level(shares[time])))
    return make_table(rows)
