"""The numbers that one batch of a request puts into a program's inputs. Pure: no device, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from koala_bundle.manifest import Manifest
from koala_bundle.tensors import HISTORY
from koala_runtime.arrays import Floats
from koala_runtime.conditioning import Condition
from koala_runtime.devices.base import Array
from koala_runtime.request import Request
from koala_runtime.weighting import weigh

TEXT_INPUTS = ("input_ids", "input_ids_2", "prompt_mask")
EMBEDDINGS = ("hidden_states", "hidden_states_2", "text_embeds")


@dataclass(frozen=True, eq=False)
class Encoded:
    """The latents of pictures to begin with, a batch: float32 [batch, channels, height / 8, width / 8] each."""

    mean: Floats
    std: Floats


def prepare(manifest: Manifest, request: Request, chunk: slice, encoded: Encoded | None = None) -> dict[str, Array]:
    """Return the inputs for the pictures ``chunk`` of a request, by tensor name; ``encoded`` if it has a source.

    A batch is static: where ``chunk`` is shorter, its last prompt fills the rows that are left, and their latents are
    zero. Rows of the text encoders are [negatives, prompts] with guidance, [prompts] without. What changes with the
    step is [steps, 1]; ``koala_bundle.tensors.components`` describes every tensor.
    """
    profile, table = manifest.profile, request.table
    rows, sides = _rows(manifest, request, chunk), _sides(manifest, request)
    ids, ids_2 = (np.concatenate([side.tokens[which].ids[rows] for side in sides]) for which in (0, 1))
    steps, noise = len(table.timesteps), request.noise.latents[chunk]
    latents = np.zeros((profile.batch, *noise.shape[1:]), np.float32)
    some = slice(len(noise))
    if request.source is None:
        with np.errstate(over="ignore"):  # latents of the caller's that are too large are told with the picture
            latents[some] = noise * np.float32(table.init_noise_sigma)
    else:
        assert encoded is not None and request.noise.encoding is not None
        known = encoded.mean[some] + encoded.std[some] * request.noise.encoding[chunk]
        latents[some] = request.source.begin(table, known, noise)
    inputs: dict[str, Array] = {
        "input_ids": ids,
        "input_ids_2": ids_2,
        "prompt_mask": np.repeat(np.array([0 if side.zeroed else 1 for side in sides], np.float32), profile.batch),
        "time_ids": np.repeat(np.stack([side.time_ids for side in sides]), profile.batch, axis=0),
        "timestep": table.timesteps.reshape(steps, 1),
        "coefficients": table.updates.reshape(steps, -1).astype(np.float32),
        "input_scale": table.scales.reshape(steps, 1).astype(np.float32),
        "latents": latents,
        "history": np.zeros((HISTORY, *latents.shape), np.float32),
    }
    if table.draws.any():
        drawn = np.zeros((steps, *latents.shape), np.float32)
        drawn[table.draws, some] = request.noise.later[:, chunk]
        inputs["noise"] = drawn.reshape(steps, -1)
    if profile.encoder:
        inputs["mask"] = np.ones((profile.batch, 1, *latents.shape[2:]), np.float32)
    if request.source is not None and request.source.mask is not None:
        kept = np.zeros((steps, *latents.shape), np.float32)
        kept[:, some] = request.source.kept(table, known, noise)
        inputs["kept"] = kept.reshape(steps, -1)
        inputs["mask"][some] = _in_turn(request.source.mask, chunk, len(noise))
    if profile.cfg:
        # At 1 the guided prediction is the prompt's own: u + 1 * (c - u) = c.
        inputs["guidance_scale"] = np.array([max(request.guidance_scale, 1.0)], np.float32)
    if profile.guidance_rescale:
        inputs["guidance_rescale"] = np.array([request.guidance_rescale], np.float32)
    return inputs


def source_pixels(request: Request, chunk: slice, batch: int) -> Array:
    """Return the pictures that ``chunk`` begins with, uint8 [batch, height, width, 3]; black where there is none."""
    assert request.source is not None
    count = len(request.noise.latents[chunk])
    pixels = np.zeros((batch, *request.source.pixels.shape[1:]), np.uint8)
    pixels[:count] = _in_turn(request.source.pixels, chunk, count)
    return pixels


def _in_turn(each: Array, chunk: slice, count: int) -> Array:
    found: Array = each[np.arange(chunk.start, chunk.start + count) % len(each)]
    return found


def embed(
    manifest: Manifest, request: Request, chunk: slice, inputs: Mapping[str, Array], encoded: Mapping[str, Array]
) -> dict[str, Array]:
    """Return ``inputs`` for a program without text encoders, to which embeddings are inputs.

    ``encoded``: EMBEDDINGS as the text encoders made them of ``inputs``. Words are weighed in them, and what the caller
    gave takes its place.
    """
    batch, rows = manifest.profile.batch, _rows(manifest, request, chunk)
    width = manifest.spec.text_encoder.hidden_size
    both = [encoded[name].astype(np.float32) for name in EMBEDDINGS]
    for place, side in enumerate(_sides(manifest, request)):
        mine = slice(place * batch, (place + 1) * batch)
        if side.embeddings is not None:
            hidden = side.embeddings.hidden[rows]
            for values, given in zip(
                both, (hidden[..., :width], hidden[..., width:], side.embeddings.pooled[rows]), strict=True
            ):
                values[mine] = given
        elif side.weighed:
            for values, tokens in zip(both, side.tokens, strict=False):
                values[mine] = weigh(values[mine], tokens.weights[rows], tokens.ends[rows])
    kept = {name: values for name, values in inputs.items() if name not in TEXT_INPUTS}
    return kept | {name: values.astype(encoded[name].dtype) for name, values in zip(EMBEDDINGS, both, strict=True)}


def _rows(manifest: Manifest, request: Request, chunk: slice) -> list[int]:
    wanted = range(request.count)[chunk]
    return [*wanted, *[wanted[-1]] * (manifest.profile.batch - len(wanted))]


def _sides(manifest: Manifest, request: Request) -> tuple[Condition, ...]:
    return (request.negative, request.prompt) if manifest.profile.cfg else (request.prompt,)
