"""The Euler step, in torch operations that are traced into the denoiser: diffusers' EulerDiscreteScheduler.

With x the latents and σ the noise level, the U-Net sees x / sqrt(σ² + 1), and the step is x + d (σ_next - σ), where the
derivative d = (x - x₀) / σ is the prediction itself for epsilon, and x σ / (σ² + 1) + v / sqrt(σ² + 1) for v_prediction
(from x₀ = x / (σ² + 1) - v σ / sqrt(σ² + 1)). All of it is float32, whatever the U-Net's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_norm(sigma: Tensor) -> Tensor:
    """Return 1 / sqrt(σ² + 1), which scales the latents to the U-Net's input; float32 [1]."""
    return torch.rsqrt(sigma * sigma + 1)


def euler_step(
    latents: Tensor, prediction: Tensor, sigma: Tensor, sigma_next: Tensor, scale: Tensor, prediction_type: str
) -> Tensor:
    """Return the latents at ``sigma_next``, float32 [batch, channels, height / 8, width / 8].

    ``prediction`` is the guided output of the U-Net, ``scale`` is ``inverse_norm(sigma)``.
    """
    if prediction_type == "v_prediction":
        prediction = (latents * sigma * scale + prediction) * scale
    return latents + prediction * (sigma_next - sigma)
