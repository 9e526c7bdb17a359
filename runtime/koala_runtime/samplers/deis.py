"""DEIS: the noise as a polynomial in log rho, integrated exactly; arXiv 2204.13902, rho = sigma / alpha."""

from __future__ import annotations

import math
from math import log

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.dpm_solver import FEW, alpha_sigma, log_ratio
from koala_runtime.samplers.forms import H1, H2, X, original_and_noise
from koala_runtime.samplers.levels import solver_levels
from koala_runtime.samplers.table import Row, Table, make_table


def deis(config: Config, steps: int) -> Table:
    """Order 1 to 3; h1 and h2 keep the noise predicted before."""
    times, rhos = solver_levels(config, steps, "deis")
    rows, count = list[Row](), len(times)
    few = config.lower_order_final and count < FEW
    for index, time in enumerate(times):
        order = min(config.solver_order, max(index - config.begin, 0) + 1)
        if few and index >= count - 2:
            order = min(order, count - index)
        alpha_0, sigma_0 = alpha_sigma(rhos[index])
        alpha, sigma = alpha_sigma(rhos[index + 1])
        noise = original_and_noise(alpha_0, sigma_0, config.prediction_type)[1]
        if order == 1:
            moved = (
                alpha / alpha_0 * X - sigma * math.expm1(log_ratio(rhos[index + 1]) - log_ratio(rhos[index])) * noise
            )
        else:
            points = [float(rhos[index - back]) for back in range(order)]
            moved = X / alpha_0
            for place, past in enumerate((noise, H1, H2)[:order]):
                others = [point for other, point in enumerate(points) if other != place]
                part = [_antiderivative(at, points[place], *others) for at in (float(rhos[index + 1]), points[0])]
                moved = moved + (part[0] - part[1]) * past
            moved = alpha * moved
        rows.append(Row(time, [moved, noise, H1], (alpha_0, sigma_0)))
    return make_table(rows)


def _antiderivative(at: float, own: float, *others: float) -> float:
    """Return, at rho = ``at``, the integral over rho of the Lagrange polynomial in log rho of ``own`` and ``others``.

    By parts: of log rho it is rho (log rho - 1), of its square rho (log^2 rho - 2 log rho + 2).
    """
    linear, square = at * (log(at) - 1), at * (log(at) ** 2 - 2 * log(at) + 2)
    if len(others) == 1:
        return (linear - log(others[0]) * at) / (log(own) - log(others[0]))
    total = log(others[0]) + log(others[1])
    below = (log(own) - log(others[0])) * (log(own) - log(others[1]))
    return (square - total * linear + log(others[0]) * log(others[1]) * at) / below
