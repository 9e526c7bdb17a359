"""A picture as stages in order: text encoders, denoising steps, VAE decoder.

Everything that a call changes (prompt, seed, guidance, noise levels) is in buffers that the host fills before the
first stage; between stages the host has nothing to do. The same program therefore serves every picture with this
number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from koala_runtime.contract.manifest import ComponentEntry
from koala_runtime.stages import Buffer, Executor, Stage

STEP_TABLES = ("sigma", "sigma_next", "timestep")  # one row per step
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Program:
    """Stages bound to buffers for one number of steps.

    ``buffers`` by tensor name; STEP_TABLES are tables of one row per step. ``latents[i]`` holds the latents before
    step i, ``latents[-1]`` the finished ones.
    """

    encode: tuple[Stage, ...]
    steps: tuple[Stage, ...]
    decode: Stage
    buffers: dict[str, Buffer]
    latents: tuple[Buffer, ...]


def compose(executor: Executor, components: Sequence[ComponentEntry], steps: int) -> Program:
    """Allocate the buffers and bind every stage of a picture with ``steps`` denoising steps."""
    buffers: dict[str, Buffer] = {}
    for component in components:
        for tensor in (*component.inputs, *component.outputs):
            if tensor.name not in buffers:
                buffers[tensor.name] = executor.allocate(tensor, steps if tensor.name in STEP_TABLES else None)

    # Latents ping-pong: each step reads what the step before wrote.
    pair = (buffers["latents"], buffers["next_latents"])
    latents = tuple(pair[step % 2] for step in range(steps + 1))
    return Program(
        encode=tuple(executor.bind(name, buffers) for name in TEXT_ENCODERS),
        steps=tuple(
            executor.bind(
                "denoiser",
                {
                    **buffers,
                    **{table: buffers[table].row(step) for table in STEP_TABLES},
                    "latents": latents[step],
                    "next_latents": latents[step + 1],
                },
            )
            for step in range(steps)
        ),
        decode=executor.bind("vae_decoder", {**buffers, "latents": latents[-1]}),
        buffers=buffers,
        latents=latents,
    )
