"""A picture as calls of components in order, each tensor at its place in one block of memory. Pure arithmetic.

Everything that differs between two pictures (prompt, seed, guidance, noise levels) is in the inputs, which lie
together at the front of the block; the host fills them before the first call and has nothing to do until the last.
The same program therefore serves every picture with this number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from koala_bundle.tensors import ITEM_BYTES, ROW_ALIGNMENT, Component, IOTensor

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PROLOGUE, DENOISER, VAE_DECODER = "prologue", "denoiser", "vae_decoder"
LATENTS, NEXT_LATENTS, IMAGES = "latents", "next_latents", "images"
HISTORY, NEXT_HISTORY, NOISE, KEPT = "history", "next_history", "noise", "kept"
VAE_ENCODER, IMAGE = "vae_encoder", "image"
PREVIEW_DECODER = "preview_decoder"
TABLES = (NOISE, KEPT)
"""Large tables, a row per step, that only some pictures need: noise of steps, and what is kept of another picture."""


@dataclass(frozen=True)
class Placement:
    """A tensor in the block: where it begins, in bytes, its dtype as numpy names it, its shape."""

    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def end(self) -> int:
        """Offset of the byte after it."""
        return self.offset + self.nbytes

    def rows(self, start: int, count: int) -> Placement:
        """Return ``count`` rows of a table [rows, items] from ``start``."""
        return replace(self, offset=self.offset + start * self._row_bytes, shape=(count, *self.shape[1:]))

    def row(self, index: int, shape: tuple[int, ...]) -> Placement:
        """Return the tensor of ``shape`` that row ``index`` of a table begins with."""
        return replace(self, offset=self.offset + index * self._row_bytes, shape=shape)

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Call:
    """One run of a component: where each of its inputs and outputs is, by name."""

    component: str
    tensors: Mapping[str, Placement]


@dataclass(frozen=True)
class Program:
    """A picture with a number of denoising steps.

    ``inputs`` by name, the first ``input_bytes`` of the block; a tensor that changes with the step is a table of a
    padded row per step (``IOTensor.row_items``). ``latents[i]`` are the latents before step i, the last the finished
    ones. ``preview`` decodes those between steps: the bundle's preview decoder, if it has one.
    """

    nbytes: int
    input_bytes: int
    inputs: Mapping[str, Placement]
    images: Placement
    encode: tuple[Call, ...]
    steps: tuple[Call, ...]
    decode: Call
    preview: Call
    latents: tuple[Placement, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls in order."""
        return (*self.encode, *self.steps, self.decode)

    def decode_after(self, step: int) -> Call:
        """Return the call that turns the latents after ``step`` (0 for the first) into a preview's images."""
        return replace(self.preview, tensors={**self.preview.tensors, LATENTS: self.latents[step + 1]})


def make_program(
    components: Sequence[Component],
    steps: int,
    *,
    half: str = "float16",
    text_encoders: bool = True,
    tables: Collection[str] = (),
) -> Program:
    """Return the program of a picture with ``steps`` steps; without ``text_encoders`` embeddings are inputs.

    ``half`` is the dtype that float16 tensors have where it runs: float32 on the processor. Every tensor has its own
    place, at a multiple of 256 bytes: together they are a few tens of megabytes, little beside the weights. In place
    of those TABLES that are not among ``tables`` a step reads the latents, which are then multiplied by zero.
    """
    left_out = (VAE_ENCODER, *(() if text_encoders else TEXT_ENCODERS))
    components = [component for component in components if component.name not in left_out]
    by_name = {component.name: component for component in components}
    prologue = by_name.get(PROLOGUE)
    # The prologue computes a fixed number of steps at once; its last run may compute more than needed.
    at_once = prologue.steps if prologue else 1
    starts = range(0, steps, at_once)
    made = {tensor.name for component in components for tensor in component.outputs}
    tensors = {t.name: t for component in components for t in (*component.inputs, *component.outputs)}
    unused = [name for name in TABLES if name in tensors and name not in tables]
    for name in unused:
        del tensors[name]
    in_prologue = {t.name for t in (*prologue.inputs, *prologue.outputs)} if prologue else set()
    # A stable sort: the inputs first, and the latents, which are both an input and made by each step, among them.
    order = sorted(tensors.values(), key=lambda tensor: tensor.name in made)
    places: dict[str, Placement] = {}
    end = 0
    for tensor in order:
        rows = steps if tensor.name in TABLES else len(starts) * at_once  # the large ones are not the prologue's
        places[tensor.name] = _place(tensor, end, rows, half)
        end = -(-places[tensor.name].end // ROW_ALIGNMENT) * ROW_ALIGNMENT
    inputs = {tensor.name: places[tensor.name] for tensor in order if tensor.name not in made}
    # Latents and history ping-pong: each step reads what the step before wrote.
    latents, history = (
        tuple(pair[step % 2] for step in range(steps + 1))
        for pair in ((places[LATENTS], places[NEXT_LATENTS]), (places[HISTORY], places[NEXT_HISTORY]))
    )

    def call(name: str, elsewhere: Mapping[str, Placement]) -> Call:
        component, where = by_name[name], {**places, **elsewhere}
        return Call(name, {tensor.name: where[tensor.name] for tensor in (*component.inputs, *component.outputs)})

    per_step = [tensor for tensor in tensors.values() if tensor.per_step]
    encode = [call(name, {}) for name in TEXT_ENCODERS if text_encoders]
    if prologue:
        pieces = (
            {t.name: places[t.name].rows(start, at_once) for t in per_step if t.name in in_prologue} for start in starts
        )
        encode += [call(PROLOGUE, piece) for piece in pieces]
    rows_of = [{t.name: places[t.name].row(step, t.shape) for t in per_step} for step in range(steps)]
    rows_of = [{**row, **dict.fromkeys(unused, latents[step])} for step, row in enumerate(rows_of)]
    carried = [
        {LATENTS: latents[i], NEXT_LATENTS: latents[i + 1], HISTORY: history[i], NEXT_HISTORY: history[i + 1]}
        for i in range(steps)
    ]
    return Program(
        nbytes=end,
        input_bytes=max(place.end for place in inputs.values()),
        inputs=inputs,
        images=places[IMAGES],
        encode=tuple(encode),
        steps=tuple(call(DENOISER, {**row, **each}) for row, each in zip(rows_of, carried, strict=True)),
        decode=call(VAE_DECODER, {LATENTS: latents[-1]}),
        preview=call(PREVIEW_DECODER if PREVIEW_DECODER in by_name else VAE_DECODER, {LATENTS: latents[-1]}),
        latents=latents,
    )


def make_encoder_program(components: Sequence[Component]) -> Program:
    """Return the program of encoding pictures, which is all in its ``encode``."""
    (component,) = (each for each in components if each.name == VAE_ENCODER)
    places: dict[str, Placement] = {}
    end = 0
    for tensor in (*component.inputs, *component.outputs):
        places[tensor.name] = _place(tensor, end, 1, "float32")
        end = -(-places[tensor.name].end // ROW_ALIGNMENT) * ROW_ALIGNMENT
    call = Call(VAE_ENCODER, places)
    image = places[IMAGE]
    return Program(
        nbytes=end,
        input_bytes=image.end,
        inputs={IMAGE: image},
        images=image,
        encode=(call,),
        steps=(),
        decode=call,
        preview=call,
        latents=(places["image_mean"],),
    )


def _place(tensor: IOTensor, offset: int, rows: int, half: str) -> Placement:
    dtype = half if tensor.dtype == "float16" else tensor.dtype
    return Placement(offset, dtype, (rows, tensor.row_items) if tensor.per_step else tensor.shape)
