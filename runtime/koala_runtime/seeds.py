"""The noise of pictures, at their start and in their steps: from a seed, a torch generator, or the caller's latents."""

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
from koala_runtime.noise import Stream


@dataclass(frozen=True, eq=False)
class Noise:
    """``latents`` float32 [n, channels, height / 8, width / 8], unit variance; ``later`` [draws, *latents].

    ``seeds``: n, None where no seed draws them again; ``alone`` if each drew its own picture's noise, and not that of
    all n together.
    """

    latents: Floats
    later: Floats
    seeds: tuple[int | None, ...]
    alone: bool = False

    @property
    def seed(self) -> int | None:
        """The seed of all pictures together, None if there is none."""
        return None if self.alone else self.seeds[0]


def draw_noise(arguments: Arguments, shape: tuple[int, ...], later: int = 0) -> Noise:
    """Return the noise that a call asks for, ``shape`` for all its pictures, and ``later`` draws of steps.

    In diffusers' order: the first latents, then for each step that draws one draw for all pictures. Raises
    ArgumentError.
    """
    seed, generator, latents = (arguments.get(name) for name in ("seed", "generator", "latents"))
    if seed is not None and generator is not None:
        raise ArgumentError("seed", expected="none beside a generator", found=repr(seed), fix="leave one of them out")
    count = shape[0]
    if len(getattr(latents, "shape", ())) == len(shape) + 1:
        whole = read_latents(latents, (1 + later, *shape))
        return Noise(whole[0], whole[1:], (None,) * count)
    given = None if latents is None else read_latents(latents, shape)
    draws = later + (given is None)
    if isinstance(generator, Sequence):
        each = [_generated(one, (1, *shape[1:]), draws) for one in _one_each("generator", generator, count)]
        drawn, seeds, alone = np.concatenate([d for d, _ in each], axis=1), tuple(known for _, known in each), True
    elif generator is not None:
        drawn, known = _generated(generator, shape, draws)
        seeds, alone = (known,) * count, False
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        numbers = [_whole(one) for one in _one_each("seed", seed, count)]
        drawn = np.concatenate([_draws(Stream(one), (1, *shape[1:]), draws) for one in numbers], axis=1)
        seeds, alone = tuple(numbers), True
    else:
        number = secrets.randbits(32) if seed is None else _whole(seed)
        drawn, seeds, alone = _draws(Stream(number), shape, draws), (number,) * count, False
    if given is not None:
        return Noise(given, drawn, (None,) * count)
    return Noise(drawn[0], drawn[1:], seeds, alone)


def _draws(stream: Stream, shape: tuple[int, ...], count: int) -> Floats:
    return np.stack([stream.randn(shape) for _ in range(count)]) if count else np.empty((0, *shape), np.float32)


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


def _generated(generator: Any, shape: tuple[int, ...], count: int) -> tuple[Floats, int | None]:
    """Let a torch generator draw, as diffusers does, and return the seed that draws the same here, if there is one.

    torch is not imported: a generator's own state is a tensor, and makes others.
    """
    try:
        seed = int(generator.initial_seed())
        like = generator.get_state().float()
        empty = [like.new_empty(shape, device=generator.device) for _ in range(count)]
        drawn: list[Floats] = [each.normal_(generator=generator).cpu().numpy() for each in empty]
    except (AttributeError, TypeError):
        raise ArgumentError(
            "generator",
            expected="a torch generator, or a list of them",
            found=type(generator).__name__,
            fix="pass a whole number as seed",
        ) from None
    own = _draws(Stream(seed), shape, count)
    # A generator that has drawn before, or one of a GPU, is not at the start of a CPU generator's stream.
    same = all(np.allclose(each, ours, rtol=0, atol=1e-5) for each, ours in zip(drawn, own, strict=True))
    return (own, seed) if same else (np.stack(drawn), None)
