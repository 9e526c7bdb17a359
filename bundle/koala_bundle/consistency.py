"""Whether the parts of a manifest fit one another: then what a runtime computes from one part holds for the others.

Tensors are those of the one table (``koala_bundle.tensors``), so that sizes follow from the profile, which is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import KEYS
from koala_bundle.spec import ModelSpec, Profile, Sampling, check_profile, check_sampling
from koala_bundle.tensors import ITEM_BYTES, Component, IOTensor, components

MOST_PIXELS = 8192 * 8192
"""Height times width times batch."""
MOST_TENSOR_BYTES = 2**32
MOST_STEPS_AT_ONCE = 1000
MOST_COMPONENT_BYTES = 2**33
_PROLOGUE, _DENOISER = "prologue", "denoiser"
_OWN = {"latents", "history", "noise", "mask", "kept", "coefficients", "input_scale"}
"""Inputs of the denoiser that no prologue takes over."""
_MOST_SIZES = 2**24  # of widths and vocabularies


class Misfit(NamedTuple):
    """A field that does not fit the others; the words of a KoalaError."""

    field: str
    expected: str
    found: str


def find_misfit(spec: ModelSpec, profile: Profile, sampling: Sampling, entries: Sequence[Component]) -> Misfit | None:
    """Return the first part of a manifest that does not fit the others, None if all do."""
    for field, value in _sizes(spec, profile):
        if not 1 <= value <= _MOST_SIZES:
            return Misfit(field, f"1 to {_MOST_SIZES}", str(value))
    if profile.height * profile.width * profile.batch > MOST_PIXELS:
        return Misfit("profile", f"at most {MOST_PIXELS:,} pixels at once", f"{profile.height} x {profile.width}")
    if spec.scheduler.class_name not in KEYS:
        return Misfit("spec.scheduler.class_name", "a known class", f"{spec.scheduler.class_name!r:.80}")
    if unfit := spec.scheduler.misfit():
        return Misfit(f"spec.scheduler.config.{unfit.key}", unfit.expected, unfit.found)
    try:
        check_profile(profile, spec)
        check_sampling(sampling.num_inference_steps, spec.scheduler["num_train_timesteps"], sampling.guidance_scale)
    except ArgumentError as error:
        return Misfit(error.what, error.expected, error.found)
    return _misfit_of_components(components(spec, profile), entries)


def _sizes(spec: ModelSpec, profile: Profile) -> Iterator[tuple[str, int]]:
    yield from (("profile.height", profile.height), ("profile.width", profile.width), ("profile.batch", profile.batch))
    yield "spec.vae.scale_factor", spec.vae.scale_factor
    yield "spec.vae.latent_channels", spec.vae.latent_channels
    yield "spec.unet.in_channels", spec.unet.in_channels
    for name, encoder in (("text_encoder", spec.text_encoder), ("text_encoder_2", spec.text_encoder_2)):
        for key in ("vocab_size", "hidden_size", "sequence_length"):
            yield f"spec.{name}.{key}", getattr(encoder, key)
    yield "spec.text_encoder_2.projection_dim", spec.text_encoder_2.projection_dim or 0
    yield "spec.text_encoder.projection_dim", spec.text_encoder.projection_dim or 1


def _misfit_of_components(table: Sequence[Component], entries: Sequence[Component]) -> Misfit | None:
    """Compare with the table: all are as it says, but for a prologue and what it gives to the denoiser."""
    wanted, found = [each.name for each in table], [each.name for each in entries]
    if [name for name in found if name != _PROLOGUE] != wanted or found.count(_PROLOGUE) > 1:
        return Misfit("components", " and ".join(wanted), f"{' and '.join(found)!s:.200}")
    of_table, of_bundle = ({each.name: each for each in some} for some in (table, entries))
    prologue = of_bundle.get(_PROLOGUE)
    made = {tensor.name: tensor for tensor in prologue.outputs} if prologue else {}
    known = {tensor.name: tensor for each in table for tensor in (*each.inputs, *each.outputs)}
    for name, entry in of_bundle.items():
        where = f"components.{name}"
        is_split = prologue is not None and name in (_PROLOGUE, _DENOISER)
        if bool(entry.steps) != (name == _PROLOGUE) or not 0 <= entry.steps <= MOST_STEPS_AT_ONCE:
            return Misfit(f"{where}.steps", f"0, or 1 to {MOST_STEPS_AT_ONCE} of the prologue", str(entry.steps))
        if not is_split and (entry.inputs, entry.outputs) != (of_table[name].inputs, of_table[name].outputs):
            return Misfit(where, "the tensors that follow from spec and profile", "others")
        if name == _DENOISER and entry.outputs != of_table[name].outputs:
            return Misfit(f"{where}.outputs", "the tensors that follow from spec and profile", "others")
        for tensor in (*entry.inputs, *entry.outputs):
            if misfit := _misfit_of(f"{where}.{tensor.name[:80]}", tensor, known, made):
                return misfit
        if sum(tensor.nbytes for tensor in (*entry.inputs, *entry.outputs)) > MOST_COMPONENT_BYTES:
            return Misfit(where, f"tensors of at most {MOST_COMPONENT_BYTES:,} bytes together", "more")
    own = {tensor.name for tensor in of_table[_DENOISER].inputs} & _OWN
    missing = own - {tensor.name for tensor in of_bundle[_DENOISER].inputs}
    if missing:
        return Misfit(f"components.{_DENOISER}.inputs", min(missing), "none")
    if made.keys() & known.keys():
        return Misfit(f"components.{_PROLOGUE}.outputs", "names of its own", min(made.keys() & known.keys()))
    return None


def _misfit_of(where: str, tensor: IOTensor, known: dict[str, IOTensor], made: dict[str, IOTensor]) -> Misfit | None:
    expected = made.get(tensor.name) or known.get(tensor.name)
    if expected != tensor:
        return Misfit(where, "a tensor that follows from spec and profile, or of the prologue", "another")
    if tensor.dtype not in ITEM_BYTES:
        return Misfit(where, " or ".join(ITEM_BYTES), f"{tensor.dtype!r:.80}")
    if not all(1 <= side <= MOST_TENSOR_BYTES for side in tensor.shape) or (
        math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype] > MOST_TENSOR_BYTES
    ):
        return Misfit(where, f"a tensor of at most {MOST_TENSOR_BYTES:,} bytes", f"{[*tensor.shape]!s:.80}")
    return None
