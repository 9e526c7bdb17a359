"""What guides the pictures of a call: prompts or embeddings, and sizes; on the positive and on the negative side."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_runtime.arguments import Arguments
from koala_runtime.arrays import Floats, read_floats
from koala_runtime.prompts import Tokens, check_text

_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """Texts to the tokens of both text encoders (``koala_runtime.prompts.PromptEncoder``)."""

    def encode(self, texts: Sequence[str], texts_2: Sequence[str], *, weighted: bool) -> tuple[Tokens, Tokens]:
        """Return what each text encoder reads."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """``hidden`` float32 [n, tokens, width of both text encoders]; ``pooled`` float32 [n, width of the second]."""

    hidden: Floats
    pooled: Floats


@dataclass(frozen=True, eq=False)
class Condition:
    """One side of n pictures.

    - ``texts``, ``texts_2``: n, as the caller gave them for each text encoder; None where he gave none.
    - ``tokens``: what each text encoder reads; of embeddings and missing texts, that of the empty text.
    - ``embeddings``: given in place of texts.
    - ``zeroed``: the embeddings are zeros.
    - ``time_ids``: float32 [6]: original size, crop corner and target size, each (height, width) in pixels.
    """

    texts: tuple[str | None, ...]
    texts_2: tuple[str | None, ...]
    tokens: tuple[Tokens, Tokens]
    embeddings: Embeddings | None
    zeroed: bool
    time_ids: Floats

    @property
    def read(self) -> bool:
        """Whether text encoders have to read it."""
        return self.embeddings is None and not self.zeroed

    @property
    def weighed(self) -> bool:
        """Whether any word of what is read has a weight of its own."""
        return self.read and any((tokens.weights != 1).any() for tokens in self.tokens)


def read_conditions(
    manifest: Manifest, encoder: Encoder, prompt: object, arguments: Arguments
) -> tuple[Condition, Condition]:
    """Return the positive and the negative side of a call. Raises ArgumentError."""
    given: dict[str, Any] = {**arguments, "prompt": prompt}
    copies = _copies(given.get("num_images_per_prompt"))
    sizes, negative_sizes = _sizes(manifest, given)
    positive = _condition(manifest, encoder, "prompt", given, None, copies, sizes)
    negative = _condition(
        manifest, encoder, "negative_prompt", given, len(positive.texts) // copies, copies, negative_sizes
    )
    return positive, negative


def _condition(
    manifest: Manifest,
    encoder: Encoder,
    name: str,
    given: dict[str, Any],
    count: int | None,
    copies: int,
    time_ids: Floats,
) -> Condition:
    """Read one side, ``prompt`` or ``negative_prompt``, of ``count`` texts, or of as many as there are."""
    texts, texts_2, embeds = given.get(name), given.get(f"{name}_2"), given.get(f"{name}_embeds")
    for other in (name, f"{name}_2"):
        if embeds is not None and given.get(other) is not None:
            raise ArgumentError(
                other, expected=f"none beside {name}_embeds", found=repr(given[other])[:40], fix="leave one of them out"
            )
    embeddings = None if embeds is None else _embeddings(manifest, name, given, embeds, count, copies)
    if embeddings is not None:
        count = len(embeddings.hidden) // copies
    elif texts is None and count is None:
        raise ArgumentError("prompt", expected="a text, or prompt_embeds", found="neither", fix="pass a prompt")
    first = _texts(name, texts, count)
    second = _texts(f"{name}_2", texts_2, len(first))
    zeroed = count is not None and embeddings is None and texts is None and manifest.spec.force_zeros_for_empty_prompt
    if zeroed and texts_2 is not None:
        _log.warning("%s_2 has no effect without %s: this model takes zeros where there is none", name, name)
    read = [text or "" for text in first]
    # As in diffusers, an empty second text stands for the first one.
    read_2 = [text_2 or text for text, text_2 in zip(read, second, strict=True)]
    tokens = encoder.encode(read, read_2, weighted=bool(given.get("weighted")))
    return Condition(
        tuple(text for text in first for _ in range(copies)),
        tuple(text for text in second for _ in range(copies)),
        (tokens[0].repeated(copies), tokens[1].repeated(copies)),
        embeddings,
        zeroed,
        time_ids,
    )


def _embeddings(
    manifest: Manifest, name: str, given: dict[str, Any], embeds: Any, count: int | None, copies: int
) -> Embeddings:
    pooled_name = name.replace("prompt", "pooled_prompt_embeds")
    if given.get(pooled_name) is None:
        raise ArgumentError(
            pooled_name,
            expected=f"the pooled embeddings that come with {name}_embeds",
            found="none",
            fix="pass what diffusers' encode_prompt returned beside them",
        )
    spec, profile = manifest.spec, manifest.profile
    if count is None:
        count = len(embeds) if hasattr(embeds, "__len__") and len(getattr(embeds, "shape", ())) == 3 else 1
    tokens = spec.text_encoder.sequence_length * profile.prompt_chunks
    shape = (count, tokens, spec.unet.cross_attention_dim)
    fix = (
        f"pass embeddings of {tokens} tokens, one per prompt; koala export --prompt-chunks makes a bundle "
        "that reads more"
    )
    hidden = read_floats(f"{name}_embeds", embeds, shape, fix)
    width = spec.text_encoder_2.projection_dim or 0
    pooled = read_floats(pooled_name, given[pooled_name], (count, width), "pass one row per prompt")
    return Embeddings(np.repeat(hidden, copies, axis=0), np.repeat(pooled, copies, axis=0))


def _copies(number: object) -> int:
    if number is None:
        return 1
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise ArgumentError(
            "num_images_per_prompt", expected="1 or more", found=repr(number), fix="pass a number of pictures"
        )
    return int(number)


def _texts(argument: str, given: object, count: int | None) -> list[str | None]:
    """Return one text per prompt; one for all if a single one is given, and None for each if there is none."""
    if given is None:
        return [None] * (count or 0)
    if isinstance(given, str):
        return [check_text(argument, given)] * (1 if count is None else count)
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise ArgumentError(argument, expected="text, or a list of texts", found=repr(given), fix="pass a string")
    texts: list[str | None] = [check_text(argument, text) for text in given]
    if not texts:
        raise ArgumentError(argument, expected="at least one text", found="an empty list", fix="pass a prompt")
    if count is not None and len(texts) != count:
        raise ArgumentError(
            argument,
            expected=f"{count}, one per prompt",
            found=str(len(texts)),
            fix="pass one text for all prompts or as many texts as prompts",
        )
    return texts


def _sizes(manifest: Manifest, given: dict[str, Any]) -> tuple[Floats, Floats]:
    """Return the sizes of both sides.

    As in diffusers, the negative side has its own if two of them are given; where a picture begins with another, each
    of these two is read by itself, and the crop is the prompt's.
    """
    own = (manifest.profile.height, manifest.profile.width)
    for side, pixels in zip(("height", "width"), own, strict=True):
        if given.get(side) not in (None, pixels):
            raise ArgumentError(
                side,
                expected=f"{own[1]} x {own[0]} px (width x height), the size of this bundle",
                found=repr(given[side]),
                fix="leave it out, or export a bundle of the size that you want",
            )
    wanted = [
        _size(name, default if given.get(name) is None else given[name])
        for name, default in (("original_size", own), ("crops_coords_top_left", (0, 0)), ("target_size", own))
    ]
    sizes = np.array(wanted, np.float32).ravel()
    names = ("negative_original_size", "negative_crops_coords_top_left", "negative_target_size")
    negative = [None if given.get(name) is None else _size(name, given[name]) for name in names]
    if given.get("image") is not None:
        own_sizes = negative[0] or wanted[0], wanted[1], negative[2] or wanted[2]
        return sizes, np.array(own_sizes, np.float32).ravel()
    if negative[0] is None or negative[2] is None:
        if any(negative):
            _log.warning("%s and %s have an effect together only", names[0], names[2])
        return sizes, sizes
    return sizes, np.array([size or (0, 0) for size in negative], np.float32).ravel()


def _size(argument: str, size: object) -> tuple[float, float]:
    """Return (height, width) if that is what ``size`` is."""
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, Real) for side in size):
        height, width = (float(side) for side in size)
        if abs(height) + abs(width) < math.inf:
            return height, width
    raise ArgumentError(argument, expected="(height, width) in pixels", found=repr(size), fix="pass two numbers")
