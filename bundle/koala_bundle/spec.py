"""What a model is (ModelSpec) and how it is compiled (Profile). Nothing here knows a model by name."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from koala_bundle.errors import ArgumentError
from koala_bundle.schedulers import SchedulerSpec

PRECISIONS = ("fp16", "fp32")
PASS_NAMES = ("rescale", "chunk", "sequence_major", "hoist")
"""The passes of an export, in the order in which they run; each can be left out (``koala_export.passes``)."""
_LARGEST_FLOAT32 = 3.4028235e38
MOST_PROMPT_CHUNKS = 16
SMALLEST_SIDE = 64  # pixels; below it the noise tensor gets shorter than the blocks torch.randn draws


@dataclass(frozen=True)
class TextEncoderSpec:
    """A CLIP text encoder. ``projection_dim`` is the width of the pooled embedding, None without one."""

    vocab_size: int
    hidden_size: int
    sequence_length: int
    projection_dim: int | None


@dataclass(frozen=True)
class UNetSpec:
    """The denoiser. Channels and widths only; the graph itself comes from the checkpoint."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    mid_block: bool
    cross_attention_dim: int
    addition_time_embed_dim: int


@dataclass(frozen=True)
class VAESpec:
    """The image decoder: latents are divided by ``scaling_factor`` and grow by ``scale_factor`` on each side."""

    latent_channels: int
    scale_factor: int
    scaling_factor: float
    force_upcast: bool


@dataclass(frozen=True)
class ModelSpec:
    """All that the three stages share about a checkpoint."""

    text_encoder: TextEncoderSpec
    text_encoder_2: TextEncoderSpec
    unet: UNetSpec
    vae: VAESpec
    scheduler: SchedulerSpec
    force_zeros_for_empty_prompt: bool


@dataclass(frozen=True)
class Sampling:
    """Defaults of a call: what the model card recommends, or what the export was given."""

    num_inference_steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Profile:
    """The static shape a bundle is compiled for.

    ``height`` and ``width`` in pixels; ``cfg``: batched guidance, ``guidance_rescale``: with rescaling;
    ``prompt_chunks``: chunks of text that the U-Net attends to, each as long as the text encoders' sequence;
    ``clip_skip``: layers of the text encoders that prompts leave out, beside the last one; ``encoder``: with the VAE's
    encoder, and what it takes to draw from a picture; ``preview_decoder``: with a decoder for previews alone.
    """

    height: int = 1024
    width: int = 1024
    batch: int = 1
    precision: str = "fp16"
    cfg: bool = True
    prompt_chunks: int = 1
    clip_skip: int = 0
    guidance_rescale: bool = False
    encoder: bool = False
    preview_decoder: bool = False

    @property
    def rows(self) -> int:
        """Batch of the text encoders and the U-Net: [negative, prompt] under classifier-free guidance."""
        return self.batch * (2 if self.cfg else 1)


def check_sampling(steps: int, most_steps: int, guidance_scale: float) -> None:
    """Raise ArgumentError unless a picture can be sampled with these numbers."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most_steps:
        raise ArgumentError(
            "num_inference_steps",
            expected=f"a whole number from 1 to {most_steps}",
            found=repr(steps),
            fix="pass 10 or so for KOALA-Lightning, 25 for KOALA",
        )
    number = isinstance(guidance_scale, Real) and not isinstance(guidance_scale, bool)
    if not number or not abs(guidance_scale) < _LARGEST_FLOAT32:
        raise ArgumentError(
            "guidance_scale",
            expected="a finite number",
            found=repr(guidance_scale),
            fix="pass 3.5 or so, or 1 for none",
        )


def check_profile(profile: Profile, spec: ModelSpec) -> None:
    """Raise ArgumentError unless the model can be compiled for this profile."""
    multiple = spec.vae.scale_factor
    for side, pixels in (("height", profile.height), ("width", profile.width)):
        if pixels % multiple or pixels < SMALLEST_SIDE:
            near = max(SMALLEST_SIDE, (pixels + multiple // 2) // multiple * multiple)
            raise ArgumentError(
                side,
                expected=f"a multiple of {multiple} pixels, at least {SMALLEST_SIDE}",
                found=str(pixels),
                fix=f"pass {near}",
            )
    if profile.batch < 1:
        raise ArgumentError("batch", expected="at least 1 picture", found=str(profile.batch), fix="pass 1 or more")
    if not 1 <= profile.prompt_chunks <= MOST_PROMPT_CHUNKS:
        raise ArgumentError(
            "prompt_chunks",
            expected=f"1 to {MOST_PROMPT_CHUNKS}",
            found=str(profile.prompt_chunks),
            fix="pass 2 for prompts of up to 150 tokens, 3 for 225",
        )
    if profile.guidance_rescale and not profile.cfg:
        raise ArgumentError(
            "guidance_rescale",
            expected="a bundle with guidance",
            found="one without",
            fix="leave it out, or compile guidance in",
        )
    if profile.precision not in PRECISIONS:
        raise ArgumentError(
            "precision", expected=" or ".join(PRECISIONS), found=repr(profile.precision), fix="pass fp16 for a GPU"
        )
