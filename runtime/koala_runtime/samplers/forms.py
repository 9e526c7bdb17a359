"""The one update, and the arithmetic in which samplers are written.

The state of a picture is its latents x and up to three history tensors h1, h2, h3. In row i of a sampler's table, with
p the guided prediction of the U-Net for c_in[i] * x at timestep[i], and n fresh noise,

    (x', h1', h2', h3') = T[i] (x, h1, h2, h3, p, n)

where T[i] is 4 x 6. A form is a vector of six numbers over that basis. Sums of forms and products with numbers are what
a sampler's formula says of tensors, so that the code of a sampler is its derivation and its table falls out.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Form: TypeAlias = NDArray[np.float64]
"""float64 [6]: coefficients of x, h1, h2, h3, the prediction and the noise."""

HISTORY = 3
X, H1, H2, H3, PREDICTION, NOISE = np.eye(HISTORY + 3)
ZERO: Form = np.zeros(HISTORY + 3)


def original(sigma: float, prediction_type: str) -> Form:
    """Return x0 of x = x0 + sigma e; Karras et al., arXiv 2206.00364."""
    if prediction_type == "epsilon":
        return X - sigma * PREDICTION
    if prediction_type == "v_prediction":
        found: Form = X / (sigma**2 + 1) - PREDICTION * (sigma / np.sqrt(sigma**2 + 1))
        return found
    return PREDICTION


def original_and_noise(alpha: float, sigma: float, prediction_type: str) -> tuple[Form, Form]:
    """Return x0 and e of x = alpha x0 + sigma e, with alpha^2 + sigma^2 = 1; Salimans and Ho, arXiv 2202.00512."""
    if prediction_type == "epsilon":
        return (X - sigma * PREDICTION) / alpha, PREDICTION
    if prediction_type == "v_prediction":
        return alpha * X - sigma * PREDICTION, alpha * PREDICTION + sigma * X
    return PREDICTION, (X - alpha * PREDICTION) / sigma


def slope(sigma: float, prediction_type: str) -> Form:
    """Return dx/dsigma = (x - x0) / sigma, the derivative that solvers on noise levels follow."""
    found: Form = (X - original(sigma, prediction_type)) / sigma
    return found
