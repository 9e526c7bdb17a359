"""The arguments of a call, in diffusers' words, and what is said of those of diffusers' that cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from koala_bundle.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image

    from koala_runtime.recipe import Recipe

Text: TypeAlias = str | Sequence[str]
Size: TypeAlias = tuple[float, float]
Callback: TypeAlias = Callable[..., "dict[str, Any] | None"]
ImageHook: TypeAlias = Callable[["Image", "Recipe"], "Image"]


class Arguments(TypedDict, total=False):
    """Of a call of ``Pipeline``, beside the prompt. Each may be None, or left out, for its default.

    n is the number of pictures: prompts times ``num_images_per_prompt``. Arrays are NumPy's, torch tensors on any
    device, or whatever ``numpy.asarray`` takes. docs/from-diffusers.md has the same list beside diffusers' own.
    """

    prompt_2: Text | None
    """What the second text encoder reads. Default: the prompt."""
    negative_prompt: Text | None
    """What to avoid, one for all prompts or one per prompt; takes guidance above 1."""
    negative_prompt_2: Text | None
    """What the second text encoder reads of it. Default: the negative prompt."""
    weighted: bool
    """Read ``(word:1.3)``, ``(word)`` and ``[word]`` as weights of words. Default: False, they are plain text."""
    prompt_embeds: Any
    """float32 [prompts, tokens, width of both text encoders], in place of the prompt."""
    negative_prompt_embeds: Any
    """The same in place of the negative prompt."""
    pooled_prompt_embeds: Any
    """float32 [prompts, width]; comes with ``prompt_embeds``."""
    negative_pooled_prompt_embeds: Any
    """float32 [prompts, width]; comes with ``negative_prompt_embeds``."""
    num_images_per_prompt: int | None
    """Pictures of each prompt, one after the other. Default: 1."""
    height: int | None
    """In pixels; the bundle's own."""
    width: int | None
    """In pixels; the bundle's own."""
    num_inference_steps: int | None
    """Denoising steps. Default: the bundle's own."""
    timesteps: Any
    """The steps' own timesteps, from much noise to little, with schedulers that take them in diffusers."""
    sigmas: Any
    """The steps' own noise levels with EulerDiscreteScheduler, and where the last of them ends."""
    scheduler: Any
    """For this call: a scheduler, or a name such as ``dpmpp_2m_karras``. Default: ``Pipeline.scheduler``."""
    eta: float | None
    """Share of the noise that DDIM and TCD add, 0 to 1. Default: 0, as in diffusers' pipelines."""
    image: Any
    """Begin with this picture, in a bundle with the VAE's encoder: PIL, uint8 [height, width, 3], floats in [0, 1], or
    a list of them. PIL pictures are resized to the bundle's size."""
    mask_image: Any
    """Paint only where this is white, of the same kinds with one channel."""
    strength: float | None
    """How much of the picture is painted anew, 0 to 1: the share of the steps. Default: 0.3, with a mask 0.9999."""
    denoising_end: float | None
    """Stop when this share of the noise levels is done, from 0 to 1; take the rest up with ``output_type="latent"``."""
    guidance_scale: float | None
    """1 or less switches guidance off, as in diffusers. Default: the bundle's own."""
    guidance_rescale: float | None
    """0 to 1 (section 3.4 of arXiv 2305.08891), in a bundle exported for it. Default: 0."""
    clip_skip: int | None
    """What the bundle was exported with."""
    seed: int | Sequence[int] | None
    """Gives the noise that ``torch.randn`` draws with a CPU generator of this seed for all pictures together; a list
    gives each picture a seed of its own. Default: random."""
    generator: Any
    """A torch generator, or a list of n; draws the noise, and moves on, as in diffusers."""
    latents: Any
    """float32 [n, channels, height / 8, width / 8] of unit variance, in place of noise; with an axis in front of these,
    also the noise of each step that draws."""
    original_size: Size | None
    """SDXL's micro-conditioning, (height, width) in pixels. Default: the picture's size."""
    crops_coords_top_left: Size | None
    """(top, left) in pixels. Default: (0, 0)."""
    target_size: Size | None
    """(height, width) in pixels. Default: the picture's size."""
    negative_original_size: Size | None
    """The same for the negative prompt, together with ``negative_target_size``. Default: the sizes of the prompt."""
    negative_crops_coords_top_left: Size | None
    """Read where both of the other two are given. Default: (0, 0)."""
    negative_target_size: Size | None
    """See ``negative_original_size``."""
    output_type: str | None
    """``pil`` (the default), ``np``, ``latent``, or on a GPU ``device``, for no more pictures than the batch."""
    return_dict: bool | None
    """False returns the tuple ``(images,)``. Default: True."""
    callback_on_step_end: Callback | None
    """``function(pipeline, step, timestep, {"latents": ...})``, called after every ``callback_steps`` steps; may return
    other latents. With more pictures than the bundle's batch it sees the steps of each batch in turn."""
    callback_on_step_end_tensor_inputs: Sequence[str] | None
    """``latents``, the default, and ``images``: a preview, uint8 [batch, height, width, 3]."""
    callback_steps: int | None
    """Default: 1."""
    mark: bool
    """Write the watermark into the pixels, for ``pil`` and ``np``. Default: False. docs/marking.md says what it is."""
    on_image: ImageHook | None
    """``function(picture, recipe)``, called with each finished PIL picture before it is marked: a safety checker.
    Returns the picture to hand over, of the same size, or raises WithheldError, which ends the call."""
    timings: bool
    """Measure each part of the picture; excludes a callback."""
    stream: Any
    """A CUDA stream, as an integer or anything with ``__cuda_stream__``: drawing begins when the work that it holds so
    far is done, such as the last use of DeviceImages."""


REFUSED: Mapping[str, tuple[str, str]] = {
    "ip_adapter_image": ("no picture prompts: engines hold the U-Net as exported", "use diffusers for IP adapters"),
    "ip_adapter_image_embeds": ("no picture prompts: engines hold the U-Net as exported", "use diffusers for these"),
    "cross_attention_kwargs": ("none: weights are fixed in the engines", "fuse a LoRA at its scale before the export"),
    "denoising_start": ("strength, which begins later", "pass image and strength"),
    "masked_image_latents": ("image and mask_image", "leave it out: they are encoded here"),
    "padding_mask_crop": ("the whole picture", "crop the picture and the mask before the call"),
    "aesthetic_score": ("none: it is for the refiner", "leave it out"),
    "negative_aesthetic_score": ("none: it is for the refiner", "leave it out"),
    "callback": ("callback_on_step_end, which replaced it in diffusers", "pass callback_on_step_end"),
}
"""Arguments of diffusers that cannot be had: what is expected instead, and what to do."""


def check_names(given: Mapping[str, Any]) -> None:
    """Raise ArgumentError for an argument of diffusers that cannot be had, TypeError for one that nobody knows."""
    for name, value in given.items():
        if name in REFUSED:
            if value is None:
                continue
            expected, fix = REFUSED[name]
            raise ArgumentError(name, expected=expected, found=type(value).__name__, fix=fix)
        if name not in Arguments.__annotations__:
            raise TypeError(f"a pipeline takes no argument {name!r}; koala_runtime.Arguments lists those that it takes")
