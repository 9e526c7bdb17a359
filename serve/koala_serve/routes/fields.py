"""The fields of OpenAI's images API and this server's own beside them, checked."""

from __future__ import annotations

import base64
import binascii
import secrets
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from koala_bundle.errors import ArgumentError
from koala_serve.image_request import ImageRequest
from koala_serve.service import Service


class Generation(BaseModel):
    """A request for pictures. A field that is None, or left out, has the model's own default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(description="What to draw.")
    model: str | None = Field(None, description="A bundle's name. Default: the first.")
    n: int | None = Field(None, ge=1, description="Pictures, with seeds one after the other. Default: 1.")
    size: str | None = Field(None, description="Width x height, of the bundle, or auto.")
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="Default: png.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="Default: b64_json.")
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description="Not transparent.")
    stream: bool | None = Field(None, description="Send events, the pictures last. Default: false.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews of each picture in a stream.")
    negative_prompt: str | None = Field(None, description="What to avoid; needs guidance above 1.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Same seed, same picture. Default: random.")
    num_inference_steps: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("num_inference_steps", "steps"), description="Denoising steps."
    )
    guidance_scale: float | None = Field(
        None, validation_alias=AliasChoices("guidance_scale", "cfg_scale"), description="1 or less: none."
    )
    scheduler: str | None = Field(None, description="A sampler of /v1/models, such as dpmpp_2m_karras.")
    eta: float | None = Field(None, description="Share of noise that ddim and tcd add.")
    weighted: bool | None = Field(None, description="Read (word:1.3) in the prompts as a weight.")
    strength: float | None = Field(None, description="With a picture: how much of it is painted anew.")
    quality: str | None = Field(None, description="Ignored.")
    style: str | None = Field(None, description="Ignored.")
    moderation: str | None = Field(None, description="Ignored.")
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    input_fidelity: str | None = Field(None, description="Ignored; strength decides.")


class JobGeneration(Generation):
    """A request for a job; pictures come in it as base64, with or without ``data:image/png;base64,`` before it."""

    image: str | None = Field(None, description="Begin with this picture.")
    mask: str | None = Field(None, description="Paint only where this is white, or transparent.")
    previews: int | None = Field(None, ge=0, le=20, description="Of each picture, as events.")


def make_image_request(
    service: Service, given: Generation, image: bytes | None = None, mask: bytes | None = None, previews: int = 0
) -> ImageRequest:
    """Return what is asked for, a seed chosen. Raises ArgumentError and UnknownModelError."""
    model = service.model(given.model)
    check_size(given.size, model.checker.size)
    if given.background == "transparent":
        raise ArgumentError("background", expected="opaque or auto", found="transparent", fix="leave it out")
    return ImageRequest(
        model=model.name,
        prompt=given.prompt,
        seed=secrets.randbits(32) if given.seed is None else given.seed,
        count=given.n or 1,
        negative_prompt=given.negative_prompt,
        num_inference_steps=given.num_inference_steps,
        guidance_scale=given.guidance_scale,
        scheduler=given.scheduler,
        eta=given.eta,
        weighted=bool(given.weighted),
        image=image,
        mask=mask,
        strength=given.strength,
        format=given.output_format or "png",
        compression=given.output_compression,
        previews=previews,
    )


def check_size(size: str | None, own: str) -> None:
    """Refuse another size than the bundle's: it is compiled in."""
    if size not in (None, "auto", own):
        raise ArgumentError("size", expected=own, found=repr(size)[:40], fix="ask for this size, or leave it out")


def from_base64(name: str, text: str | None) -> bytes | None:
    """Return the bytes of a picture in JSON, None for none. Raises ArgumentError."""
    if text is None:
        return None
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise ArgumentError(name, expected="base64", found="other text", fix="encode the file in base64") from None


def to_base64(file: bytes | None) -> str:
    """Return a picture's file as it goes into JSON."""
    return base64.b64encode(file or b"").decode()


def described(model: Any) -> dict[str, Any]:
    """Return what clients are told of a model, beyond OpenAI's fields."""
    manifest = model.checker.manifest
    return {
        "bundle": model.digest,
        "size": model.checker.size,
        "num_inference_steps": manifest.sampling.num_inference_steps,
        "guidance_scale": manifest.sampling.guidance_scale,
        "guidance": manifest.profile.cfg,
        "scheduler": model.checker.scheduler,
        "schedulers": [*model.checker.schedulers],
        "edits": model.checker.takes_images,
        "batch": manifest.profile.batch,
    }
