"""The one table of tensors: which components there are and what goes in and out of each.

Trace inputs, ONNX names, the static optimization profile, the runtime's buffers and the manifest are all read
from here. Components meet by tensor name: an output feeds every later input of the same name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from koala_bundle.spec import ModelSpec, Profile

ITEM_BYTES = {"float32": 4, "float16": 2, "int32": 4, "uint8": 1}
HISTORY = 3
"""Tensors that a sampler may keep from step to step beside the latents."""
COEFFICIENTS = (HISTORY + 1, HISTORY + 3)
"""The shape of a sampler's update: of latents and history, from these, the prediction and noise."""
ROW_ALIGNMENT = 256  # bytes; what CUDA's allocators give and TensorRT asks of a tensor's address


@dataclass(frozen=True)
class IOTensor:
    """A tensor at a component's edge; ``dtype`` is numpy's name, ``shape`` is static.

    ``per_step`` tensors have another value in every denoising step; a run keeps them as a table of one row per step.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_step: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_items(self) -> int:
        """Length of this tensor's row in a table, in items: padded, so that every row starts at an aligned address."""
        return -(-self.nbytes // ROW_ALIGNMENT) * ROW_ALIGNMENT // ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Component:
    """One exported graph.

    ``steps`` is 0 but for a component that computes the values of that many denoising steps at once: there a
    ``per_step`` tensor is a piece of its table, [steps, row_items], and a tensor's own items come first in its row.
    """

    name: str
    inputs: tuple[IOTensor, ...]
    outputs: tuple[IOTensor, ...]
    steps: int = 0

    def graph_shape(self, tensor: IOTensor) -> tuple[int, ...]:
        """Return the shape that ``tensor`` has in this component's graph."""
        return (self.steps, tensor.row_items) if self.steps and tensor.per_step else tensor.shape


def components(spec: ModelSpec, profile: Profile) -> tuple[Component, ...]:
    """Return the components in the order in which a picture runs them; a ``preview_decoder`` is run between steps.

    ``rows`` is ``batch``, twice that under guidance, in the order [negative..., prompt...].

    - ``prompt_mask`` float32 [rows]: 1 keeps a row's text embeddings, 0 makes them zero
      (diffusers' force_zeros_for_empty_prompt).
    - ``time_ids`` float32 [rows, 6]: original size, crop corner and target size, each (height, width) in pixels.
    - ``coefficients`` float32 [4, 6]: the sampler's update in this step (``koala_export.sampler_step``);
      ``input_scale`` float32 [1]: what the U-Net's input is times the latents.
    - ``timestep`` float32 [1]: the U-Net's conditioning value.
    - ``latents`` float32 [batch, channels, height / 8, width / 8]; ``noise`` fresh normals of this shape.
    - ``mask`` float32 [batch, 1, height / 8, width / 8]: 1 where the step's latents are taken, 0 where ``kept`` are.
    - ``image_mean``, ``image_std``: the distribution of a picture's latents, in the unit of ``latents``.
    - ``history`` float32 [HISTORY, *latents]: what the sampler keeps of earlier steps; zeros before the first.
    """
    first, second, unet, vae = spec.text_encoder, spec.text_encoder_2, spec.unet, spec.vae
    half = {"fp16": "float16", "fp32": "float32"}[profile.precision]
    rows, batch = profile.rows, profile.batch
    latent_shape = (batch, unet.in_channels, profile.height // vae.scale_factor, profile.width // vae.scale_factor)

    prompt_mask = IOTensor("prompt_mask", "float32", (rows,))
    tokens = first.sequence_length * profile.prompt_chunks
    tokens_2 = second.sequence_length * profile.prompt_chunks
    hidden_states = IOTensor("hidden_states", half, (rows, tokens, first.hidden_size))
    hidden_states_2 = IOTensor("hidden_states_2", half, (rows, tokens_2, second.hidden_size))
    text_embeds = IOTensor("text_embeds", half, (rows, second.projection_dim or 0))
    latents = IOTensor("latents", "float32", latent_shape)
    mask = IOTensor("mask", "float32", (batch, 1, *latent_shape[2:]))
    image_shape = (batch, profile.height, profile.width, 3)
    images = IOTensor("images", "uint8", image_shape)
    encoder = Component(
        "vae_encoder",
        (IOTensor("image", "uint8", image_shape),),
        (IOTensor("image_mean", "float32", latent_shape), IOTensor("image_std", "float32", latent_shape)),
    )
    return (
        *((encoder,) if profile.encoder else ()),
        Component(
            "text_encoder",
            (IOTensor("input_ids", "int32", (rows, tokens)), prompt_mask),
            (hidden_states,),
        ),
        Component(
            "text_encoder_2",
            (IOTensor("input_ids_2", "int32", (rows, tokens_2)), prompt_mask),
            (hidden_states_2, text_embeds),
        ),
        Component(
            "denoiser",
            (
                latents,
                IOTensor("history", "float32", (HISTORY, *latent_shape)),
                IOTensor("noise", "float32", latent_shape, per_step=True),
                *((mask, IOTensor("kept", "float32", latent_shape, per_step=True)) if profile.encoder else ()),
                IOTensor("coefficients", "float32", COEFFICIENTS, per_step=True),
                IOTensor("input_scale", "float32", (1,), per_step=True),
                IOTensor("timestep", "float32", (1,), per_step=True),
                *((IOTensor("guidance_scale", "float32", (1,)),) if profile.cfg else ()),
                *((IOTensor("guidance_rescale", "float32", (1,)),) if profile.guidance_rescale else ()),
                hidden_states,
                hidden_states_2,
                text_embeds,
                IOTensor("time_ids", "float32", (rows, 6)),
            ),
            (
                IOTensor("next_latents", "float32", latent_shape),
                IOTensor("next_history", "float32", (HISTORY, *latent_shape)),
            ),
        ),
        Component(
            "vae_decoder",
            (latents,),
            (images,),
        ),
        *((Component("preview_decoder", (latents,), (images,)),) if profile.preview_decoder else ()),
    )
