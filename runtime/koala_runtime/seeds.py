"""The noise that pictures begin with: from a seed, a torch generator, or the caller's own latents."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_runtime.arguments import Arguments
from koala_runtime.arrays import Floats, read_latents
from koala_runtime.noise import randn


@dataclass(frozen=True, eq=False)
class Noise:
    """``latents`` float32 [n, channels, height / 8, width / 8], unit variance.

    ``seeds``: n, None where no seed draws them again; ``alone`` if each drew its own picture's noise, and not that of
    all n together.
    """

    latents: Floats
    seeds: tuple[int | None, ...]
    alone: bool = False

    @property
    def seed(self) -> int | None:
        """The seed of all pictures together, None if there is none."""
        return None if self.alone else self.seeds[0]


def draw_noise(arguments: Arguments, shape: tuple[int, ...]) -> Noise:
    """Return the noise that a call asks for, ``shape`` for all its pictures. Raises ArgumentError."""
    seed, generator, latents = (arguments.get(name) for name in ("seed", "generator", "latents"))
    if seed is not None and generator is not None:
        raise ArgumentError("seed", expected="none beside a generator", found=repr(seed), fix="leave one of them out")
    count = shape[0]
    if latents is not None:
        return Noise(read_latents(latents, shape), (None,) * count)
    if isinstance(generator, Sequence):
        each = [_generated(one, (1, *shape[1:])) for one in _one_each("generator", generator, count)]
        return Noise(np.concatenate([drawn for drawn, _ in each]), tuple(known for _, known in each), alone=True)
    if generator is not None:
        drawn, known = _generated(generator, shape)
        return Noise(drawn, (known,) * count)
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = [_whole(one) for one in _one_each("seed", seed, count)]
        return Noise(np.concatenate([randn((1, *shape[1:]), one) for one in seeds]), tuple(seeds), alone=True)
    number = secrets.randbits(32) if seed is None else _whole(seed)
    return Noise(randn(shape, number), (number,) * count)


def _whole(seed: object) -> int:
    if isinstance(seed, Integral) and not isinstance(seed, bool):
        return int(seed)
    raise ArgumentError("seed", expected="a whole number", found=repr(seed), fix="pass an int, or None")


def _one_each(argument: str, given: Sequence[Any], count: int) -> Sequence[Any]:
    if len(given) != count:
        raise ArgumentError(
            argument, expected=f"{count}, one per picture", found=str(len(given)), fix="pass one, or one per picture"
        )
    return given


def _generated(generator: Any, shape: tuple[int, ...]) -> tuple[Floats, int | None]:
    """Let a torch generator draw, as diffusers does, and return the seed that draws the same here, if there is one.

    torch is not imported: a generator's own state is a tensor, and makes others.
    """
    try:
        seed = int(generator.initial_seed())
        empty = generator.get_state().float().new_empty(shape, device=generator.device)
        drawn: Floats = empty.normal_(generator=generator).cpu().numpy()
    except (AttributeError, TypeError):
        raise ArgumentError(
            "generator",
            expected="a torch generator, or a list of them",
            found=type(generator).__name__,
            fix="pass a whole number as seed",
        ) from None
    own = randn(shape, seed)
    # A generator that has drawn before, or one of a GPU, is not at the start of a CPU generator's stream.
    return (own, seed) if np.allclose(drawn, own, rtol=0, atol=1e-5) else (drawn, None)
