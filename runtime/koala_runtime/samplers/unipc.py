"""UniPC: a predictor, and a corrector that uses the next step's own prediction; arXiv 2302.04867.

The corrector of a step needs the model at the step's end, which the next row evaluates anyway. So h1 keeps all of the
next corrector but that one output, and the next row begins with x = h1 + gain m. h2 and h3 keep earlier outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.dpm_solver import alpha_sigma, log_ratio
from koala_runtime.samplers.forms import H1, H2, H3, ZERO, Form, X, original_and_noise
from koala_runtime.samplers.levels import Floats, solver_levels
from koala_runtime.samplers.table import Row, Table, make_table


class _Step(NamedTuple):
    """The numbers of a step of order ``len(ratios)``, in the paper's letters."""

    phi: float
    b: float
    weights: Sequence[float]
    ratios: Sequence[float]


def unipc(config: Config, steps: int) -> Table:
    """Order 1 to 3, on x0 (``predict_x0``) or on the noise."""
    times, sigmas = solver_levels(config, steps, "unipc")
    rows, count, gain = list[Row](), len(times), 0.0
    for index, time in enumerate(times):
        level = alpha_sigma(sigmas[index])
        outputs = original_and_noise(*level, config.prediction_type)
        model = outputs[0 if config.predict_x0 else 1]
        x = H1 + gain * model if index > config.begin else X
        allowed = min(config.solver_order, count - index) if config.lower_order_final else config.solver_order
        order = min(allowed, max(index - config.begin, 0) + 1)
        predicted, _ = _moved(config, sigmas, index, order, x, (model, H2, H3), corrector=False)
        corrected = ZERO
        if index + 1 < count:
            corrected, gain = _moved(config, sigmas, index, order, x, (model, H2, H3), corrector=True)
        rows.append(Row(time, [predicted, corrected, model, H2], level))
    return make_table(rows)


def _moved(
    config: Config, sigmas: Floats, index: int, order: int, x: Form, models: Sequence[Form], *, corrector: bool
) -> tuple[Form, float]:
    """Return x at the next level, and of a corrector the weight of the model there, which is left out."""
    alpha_0, sigma_0 = alpha_sigma(sigmas[index])
    alpha, sigma = alpha_sigma(sigmas[index + 1])
    kept, weight = (sigma / sigma_0, alpha) if config.predict_x0 else (alpha / alpha_0, sigma)
    step = _step(config, sigmas, index, order, corrector=corrector)
    moved = kept * x - weight * step.phi * models[0]
    for past, share, ratio in zip(models[1:order], step.weights, step.ratios, strict=False):
        moved = moved - weight * step.b * share / ratio * (past - models[0])
    if not corrector:
        return moved, 0.0
    own = weight * step.b * step.weights[-1]
    return moved + own * models[0], -own


def _step(config: Config, sigmas: Floats, index: int, order: int, *, corrector: bool) -> _Step:
    start = log_ratio(sigmas[index])
    h = log_ratio(sigmas[index + 1]) - start
    ratios = [*((log_ratio(sigmas[index - back]) - start) / h for back in range(1, order)), 1.0]
    signed = -h if config.predict_x0 else h
    phi = math.expm1(signed)
    b = signed if config.solver_type == "bh1" else phi
    if order == 1 and not corrector:
        return _Step(phi, b, [], ratios)
    matrix, right, k, factorial = [], [], phi / signed - 1, 1
    for power in range(order):
        matrix.append(np.power(ratios, power))
        right.append(k * factorial / b)
        factorial *= power + 2
        k = k / signed - 1 / factorial
    if corrector:
        weights = [0.5] if order == 1 else [*np.linalg.solve(np.array(matrix), np.array(right))]
    else:
        weights = [0.5] if order == 2 else [*np.linalg.solve(np.array(matrix)[:-1, :-1], np.array(right)[:-1])]
    return _Step(phi, b, weights, ratios)
