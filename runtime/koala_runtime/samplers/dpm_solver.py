"""DPM-Solver and DPM-Solver++ of order 1 to 3, as ODE and SDE, multistep and singlestep.

After arXiv 2206.00927 and 2211.01095, in lambda = log(alpha / sigma). m is what the solver integrates, x0 for the kinds
with ++ and the noise for the others; D1 and D2 are its first and second differences along lambda.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from koala_runtime.samplers.config import Config
from koala_runtime.samplers.forms import H1, H2, H3, NOISE, ZERO, Form, X, original_and_noise
from koala_runtime.samplers.levels import Floats, solver_levels
from koala_runtime.samplers.table import Row, Table, make_table

FEW = 15  # steps, below which diffusers lowers the order at the end


def dpm_multistep(config: Config, steps: int) -> Table:
    """Each step uses the models of the steps before it: h1 and h2."""
    times, sigmas = solver_levels(config, steps, "multistep")
    rows, count = list[Row](), len(times)
    few = config.lower_order_final and count < FEW
    for index, time in enumerate(times):
        order = min(config.solver_order, max(index - config.begin, 0) + 1)
        if index == count - 1 and (few or config.euler_at_final or config.final_sigmas_type == "zero"):
            order = 1
        if index == count - 2 and few:
            order = min(order, 2)
        model = model_output(config, sigmas[index])
        moved = _update(config, sigmas, index, index, _multistep_differences(sigmas, index, order, model), X)
        rows.append(Row(time, [moved, model, H1], alpha_sigma(sigmas[index]), draws=_is_stochastic(config)))
    return make_table(rows)


def dpm_singlestep(config: Config, steps: int) -> Table:
    """Groups of steps of order 1, 2, 3 that all start where the group did: h3 keeps that sample."""
    times, sigmas = solver_levels(config, steps, "singlestep")
    rows = list[Row]()
    for index, (time, allowed) in enumerate(zip(times, _orders(config, steps), strict=True)):
        order = min(allowed, max(index - config.begin, 0) + 1)
        model, start = model_output(config, sigmas[index]), X if order == 1 else H3
        differences = _singlestep_differences(config, sigmas, index, order, model)
        moved = _update(config, sigmas, index, index - order + 1, differences, start)
        level = alpha_sigma(sigmas[index])
        rows.append(Row(time, [moved, model, H1, start], level, draws=_is_stochastic(config)))
    return make_table(rows)


def alpha_sigma(sigma: float) -> tuple[float, float]:
    """Return alpha and sigma with alpha^2 + sigma^2 = 1 of the noise level sigma / alpha."""
    alpha = 1 / math.hypot(sigma, 1)
    return alpha, sigma * alpha


def log_ratio(sigma: float) -> float:
    """Return lambda = log(alpha / sigma); infinite without noise."""
    return -math.log(sigma) if sigma > 0 else math.inf


def model_output(config: Config, sigma: float) -> Form:
    """Return m at a noise level."""
    x0, noise = original_and_noise(*alpha_sigma(sigma), config.prediction_type)
    return x0 if config.algorithm_type.endswith("++") else noise


def _is_stochastic(config: Config) -> bool:
    return config.algorithm_type.startswith("sde")


def _multistep_differences(sigmas: Floats, index: int, order: int, model: Form) -> list[Form]:
    """Return m and its differences at step ``index``, from m, h1 and h2."""
    if order == 1:
        return [model]
    step = log_ratio(sigmas[index + 1]) - log_ratio(sigmas[index])
    past = [log_ratio(sigmas[index - back]) for back in range(order)]
    ratio = (past[0] - past[1]) / step if step else math.inf  # the last two levels can be equal
    first = (model - H1) / ratio
    if order == 2:
        return [model, first]
    ratio_2 = (past[1] - past[2]) / step if step else math.inf
    second = (H1 - H2) / ratio_2
    return [model, first + ratio / (ratio + ratio_2) * (first - second), (first - second) / (ratio + ratio_2)]


def _singlestep_differences(config: Config, sigmas: Floats, index: int, order: int, model: Form) -> list[Form]:
    """Return m at the group's start and its differences, from m, h1 and h2."""
    if order == 1:
        return [model]
    start = log_ratio(sigmas[index - order + 1])
    step = log_ratio(sigmas[index + 1]) - start
    if order == 2:
        return [H1, (model - H1) / ((log_ratio(sigmas[index]) - start) / step)]
    late, early = ((log_ratio(sigmas[index - back]) - start) / step for back in (0, 1))
    near, far = (H1 - H2) / early, (model - H2) / late
    if config.solver_type == "midpoint":
        return [H2, far, ZERO]
    return [H2, (late * near - early * far) / (late - early), 2 * (far - near) / (late - early)]


def _update(config: Config, sigmas: Floats, index: int, start: int, models: Sequence[Form], x: Form) -> Form:
    """Return x at ``sigmas[index + 1]`` from ``x`` at ``sigmas[start]``; the order is the number of ``models``."""
    alpha, sigma = alpha_sigma(sigmas[index + 1])
    alpha_0, sigma_0 = alpha_sigma(sigmas[start])
    h = log_ratio(sigmas[index + 1]) - log_ratio(sigmas[start])
    m, d1, d2 = (*models, ZERO, ZERO)[:3]
    order, midpoint = len(models), len(models) == 2 and config.solver_type == "midpoint"
    kind = config.algorithm_type
    if kind == "dpmsolver++":
        whole = alpha * math.expm1(-h)
        moved = sigma / sigma_0 * x - whole * m
        if order > 1:
            moved = moved + (-whole / 2 if midpoint else alpha * (math.expm1(-h) / h + 1)) * d1
        return moved - (alpha * ((math.expm1(-h) + h) / h**2 - 0.5) * d2 if order > 2 else ZERO)
    if kind == "dpmsolver":
        whole = sigma * math.expm1(h)
        moved = alpha / alpha_0 * x - whole * m
        if order > 1:
            moved = moved - (whole / 2 if midpoint else sigma * (math.expm1(h) / h - 1)) * d1
        return moved - (sigma * ((math.expm1(h) - h) / h**2 - 0.5) * d2 if order > 2 else ZERO)
    if kind == "sde-dpmsolver++":
        lost = -math.expm1(-2 * h)  # 1 - exp(-2 h)
        moved = sigma / sigma_0 * math.exp(-h) * x + alpha * lost * m + sigma * math.sqrt(lost) * NOISE
        if order > 1:
            moved = moved + alpha * (lost / 2 if midpoint else lost / (-2 * h) + 1) * d1
        return moved + (alpha * ((lost - 2 * h) / (2 * h) ** 2 - 0.5) * d2 if order > 2 else ZERO)
    whole = sigma * math.expm1(h)
    moved = alpha / alpha_0 * x - 2 * whole * m + sigma * math.sqrt(math.expm1(2 * h)) * NOISE
    return moved - (whole if midpoint else 2 * sigma * (math.expm1(h) / h - 1)) * d1


def _orders(config: Config, steps: int) -> list[int]:
    """Return the order of every step, as diffusers' get_order_list gives it."""
    order = config.solver_order
    lowered = config.lower_order_final or steps % order != 0 or config.final_sigmas_type == "zero"
    if not lowered:
        orders = [*range(1, order + 1)] * (steps // order)
    elif order == 3:
        ends = {0: [1, 2, 1], 1: [1], 2: [1, 2]}
        orders = [1, 2, 3] * (steps // 3 - (steps % 3 == 0)) + ends[steps % 3]
    elif order == 2:
        orders = [1, 2] * (steps // 2 - (steps % 2 == 0)) + ([1, 1] if steps % 2 == 0 else [1])
    else:
        orders = [1] * steps
    if config.final_sigmas_type == "zero":
        orders[-1] = 1
    return orders
