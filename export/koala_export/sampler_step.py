"""The step of every sampler, in torch operations that are traced into the denoiser.

With z = (latents, 3 tensors of history), p the guided prediction of the U-Net and n fresh noise, a step is

    z' = T (z, p, n)

where T is 4 x 6. Which sampler it is, how far it goes and what the model predicts is in T alone, a row of the table
that the runtime computes (``koala_runtime.samplers``). All of it is float32, whatever the U-Net's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advance(
    latents: Tensor, history: Tensor, prediction: Tensor, noise: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the latents and the history after the step, float32 [batch, channels, h, w] and [3, *latents]."""
    update = coefficients[..., None, None, None, None]
    known = torch.cat([latents[None], history, prediction[None], noise[None]])
    after = (update * known).sum(1)
    return after[0], after[1:]
