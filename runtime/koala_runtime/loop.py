"""A picture as stages in order: text encoders, prologue, denoising steps, VAE decoder.

Everything that a call changes (prompt, seed, guidance, noise levels) is in buffers that the host fills before the
first stage; between stages the host has nothing to do. The same program therefore serves every picture with this
number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from koala_runtime.contract.io import Component
from koala_runtime.stages import Buffer, Executor, Stage

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PROLOGUE, DENOISER, VAE_DECODER = "prologue", "denoiser", "vae_decoder"


@dataclass(frozen=True)
class Program:
    """Stages bound to buffers for one number of steps.

    ``encode`` is all that comes before the first step. ``buffers`` by tensor name; those of tensors that change with
    the step are tables of a row per step. ``latents[i]`` holds the latents before step i, ``latents[-1]`` the finished
    ones.
    """

    encode: tuple[Stage, ...]
    steps: tuple[Stage, ...]
    decode: Stage
    buffers: dict[str, Buffer]
    latents: tuple[Buffer, ...]


def compose(executor: Executor, components: Sequence[Component], steps: int) -> Program:
    """Allocate the buffers and bind every stage of a picture with ``steps`` denoising steps."""
    prologue = next((component for component in components if component.name == PROLOGUE), None)
    # The prologue computes so many steps at once; the last time it may compute some that nobody asked for.
    at_once = prologue.steps if prologue else 1
    starts = range(0, steps, at_once)
    buffers: dict[str, Buffer] = {}
    tables: set[str] = set()
    for component in components:
        for tensor in (*component.inputs, *component.outputs):
            if tensor.name not in buffers:
                buffers[tensor.name] = executor.allocate(tensor, len(starts) * at_once if tensor.per_step else None)
            if tensor.per_step:
                tables.add(tensor.name)

    # Latents ping-pong: each step reads what the step before wrote.
    pair = (buffers["latents"], buffers["next_latents"])
    latents = tuple(pair[step % 2] for step in range(steps + 1))
    encode = [executor.bind(name, buffers) for name in TEXT_ENCODERS]
    if prologue:
        for start in starts:
            pieces = {table: buffers[table].rows(start, at_once) for table in tables}
            encode.append(executor.bind(PROLOGUE, buffers | pieces))
    return Program(
        encode=tuple(encode),
        steps=tuple(
            executor.bind(
                DENOISER,
                buffers
                | {table: buffers[table].row(step) for table in tables}
                | {"latents": latents[step], "next_latents": latents[step + 1]},
            )
            for step in range(steps)
        ),
        decode=executor.bind(VAE_DECODER, {**buffers, "latents": latents[-1]}),
        buffers=buffers,
        latents=latents,
    )
