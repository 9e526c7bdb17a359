"""The torch modules that are traced, one per component; their inputs and outputs are those of ``koala_bundle.tensors``.

The models are the checkpoint's own, unchanged. What is added around them is what diffusers'
StableDiffusionXLPipeline does on the host: choosing hidden states, classifier-free guidance, the sampler, pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from koala_bundle.spec import ModelSpec, Profile
from koala_export.checkpoint import Checkpoint
from koala_export.configs import PREVIEW_DECODER, read_vae
from koala_export.module_passes import MODULE_PASSES
from koala_export.sampler_step import advance


class TextEncoder(nn.Module):
    """input_ids, prompt_mask -> hidden_states, the raw output of the last layer but one (no final norm).

    With ``clip_skip`` prompts, but not negative ones, read that many layers earlier, as in diffusers. Each chunk of the
    text is encoded by itself.
    """

    def __init__(self, text_encoder: Any, profile: Profile) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.chunks, self.clip_skip = profile.prompt_chunks, profile.clip_skip
        self.rows, self.negatives = profile.rows, profile.rows - profile.batch

    def encode(self, ids: Tensor) -> tuple[Any, Tensor]:
        """Return the text encoder's output by chunk, and the hidden states by row."""
        if self.chunks > 1:
            ids = ids.reshape(self.rows * self.chunks, -1)
        output = self.text_encoder(ids, output_hidden_states=True)
        states: Tensor = output.hidden_states[-2]
        if self.clip_skip:
            count = self.negatives * self.chunks
            states = torch.cat([states[:count], output.hidden_states[-2 - self.clip_skip][count:]])
        if self.chunks > 1:
            states = states.reshape(self.rows, -1, states.shape[-1])
        return output, states

    def forward(self, input_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        return _masked(self.encode(input_ids)[1], prompt_mask)


class TextEncoder2(TextEncoder):
    """input_ids_2, prompt_mask -> hidden_states_2 as above, and text_embeds, the first chunk's projected end state."""

    def forward(self, input_ids_2: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, states = self.encode(input_ids_2)
        pooled = output.text_embeds
        if self.chunks > 1:
            pooled = pooled.reshape(self.rows, self.chunks, -1)[:, 0]
        return _masked(states, prompt_mask), _masked(pooled, prompt_mask)


class Denoiser(nn.Module):
    """One denoising step: batched guidance around the U-Net, then the update of ``koala_export.sampler_step``."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        latents: Tensor,
        history: Tensor,
        noise: Tensor,
        coefficients: Tensor,
        input_scale: Tensor,
        timestep: Tensor,
        hidden_states: Tensor,
        hidden_states_2: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        guidance_scale: Tensor | None = None,
        guidance_rescale: Tensor | None = None,
        mask: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        sample = latents * input_scale
        if guidance_scale is not None:
            sample = torch.cat([sample, sample])
        prediction: Tensor = self.unet(
            sample.to(self.unet.dtype),
            timestep,
            encoder_hidden_states=torch.cat([hidden_states, hidden_states_2], dim=-1),
            # float32: the U-Net concatenates them with float32 sinusoids, and ONNX has no mixed Concat.
            added_cond_kwargs={"text_embeds": text_embeds.float(), "time_ids": time_ids},
            return_dict=False,
        )[0].float()
        if guidance_scale is not None:
            negative, positive = prediction.chunk(2)
            prediction = negative + guidance_scale * (positive - negative)
            if guidance_rescale is not None:
                # Section 3.4 of arXiv 2305.08891: the deviation of the prompt's own prediction.
                ratio = _deviation(positive) / _deviation(prediction)
                prediction = guidance_rescale * (prediction * ratio) + (1 - guidance_rescale) * prediction
        next_latents, next_history = advance(latents, history, prediction, noise, coefficients)
        if mask is not None and kept is not None:
            next_latents = mask * next_latents + (1 - mask) * kept
        return next_latents, next_history


class VAEEncoder(nn.Module):
    """image, uint8 NHWC -> image_mean, image_std of its latents, scaled as the U-Net reads them."""

    shift: Tensor
    factor: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        mean, std, _ = latents_statistics(vae)
        self.register_buffer("shift", mean)
        self.register_buffer("factor", vae.config.scaling_factor / std)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # The cast comes first: TensorRT takes uint8 at a network's edge only.
        pixels = (image.float() / 255 * 2 - 1).permute(0, 3, 1, 2)
        found = self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0].parameters.float()
        mean, log_variance = found.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30, 20))  # as DiagonalGaussianDistribution has it
        return (mean - self.shift) * self.factor, deviation * self.factor


def latents_statistics(vae: Any) -> tuple[Tensor, Tensor, bool]:
    """Return mean and deviation that a VAE's latents have, [1, channels, 1, 1], and whether it says so."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return torch.zeros(()), torch.ones(()), False
    return torch.tensor(mean).reshape(1, -1, 1, 1), torch.tensor(std).reshape(1, -1, 1, 1), True


class VAEDecoder(nn.Module):
    """latents -> images, uint8 NHWC."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)
        mean, std, self.normalised = latents_statistics(vae)
        self.register_buffer("std", std)
        self.register_buffer("mean", mean)

    def forward(self, latents: Tensor) -> Tensor:
        scaled = latents / self.scaling_factor
        if self.normalised:
            scaled = latents * (self.std / self.scaling_factor) + self.mean
        pixels: Tensor = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0].float()
        levels = (pixels * 0.5 + 0.5).clamp(0, 1) * 255
        # The cast comes last: TensorRT takes uint8 at a network's edge only.
        return levels.round().permute(0, 2, 3, 1).to(torch.uint8)


def model_of(component: str) -> str:
    """Return which of the checkpoint's models a component has."""
    return {"denoiser": "unet", "vae_decoder": "vae", "vae_encoder": "vae"}.get(component, component)


def build_module(
    component: str,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    profile: Profile,
    passes: Collection[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """Load what ``component`` needs from the checkpoint and return its module, in evaluation mode.

    ``passes`` names the module passes that run on it. A VAE that asks for float32 (force_upcast) is float32, unless
    ``rescale`` is among them and finds a scale.
    """
    dtype = torch.float16 if profile.precision == "fp16" else torch.float32
    name = model_of(component)
    is_vae = name in ("vae", PREVIEW_DECODER)
    upcast = is_vae and read_vae(checkpoint.configs[name], checkpoint.configs["model_index"][name][1]).force_upcast
    model: Any = checkpoint.load(name, torch.float32 if upcast else dtype)
    if is_vae:  # one half is traced, and module passes change what is there
        setattr(model, "decoder" if component == "vae_encoder" else "encoder", None)
    for each in MODULE_PASSES:
        if each.name in passes and (change := each.run(model, dtype)):
            report(f"{component}: {change}")
    if component == "denoiser":
        return Denoiser(model).eval()
    if is_vae:
        return (VAEEncoder if component == "vae_encoder" else VAEDecoder)(model).eval()
    if profile.precision == "fp32":
        # In float32 TensorRT has no fused kernel for CLIP's masked attention; plain matrix products always build.
        model.set_attn_implementation("eager")
    return (TextEncoder if component == "text_encoder" else TextEncoder2)(model, profile).eval()


def _deviation(prediction: Tensor) -> Tensor:
    """Return the standard deviation of each row, [rows, 1, 1, 1]."""
    centred = prediction - prediction.mean(dim=(1, 2, 3), keepdim=True)
    return centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def _masked(states: Tensor, prompt_mask: Tensor) -> Tensor:
    """Zero the rows whose mask is 0, as diffusers does for a negative prompt that is not given."""
    keep = prompt_mask.reshape(-1, *[1] * (states.ndim - 1)) > 0
    return torch.where(keep, states, torch.zeros((), dtype=states.dtype))
