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

    ``encoding``: [n, ...], what a sample of the latents of another picture takes, None without one.
    ``seeds``: n, None where no seed draws them again; ``alone`` if each drew its own picture's noise, and not that of
    all n together.
    """

    latents: Floats
    later: Floats
    seeds: tuple[int | None, ...]
    alone: bool = False
    encoding: Floats | None = None

    @property
    def seed(self) -> int | None:
        """The seed of all pictures together, None if there is none."""
        return None if self.alone else self.seeds[0]


def draw_noise(
    arguments: Arguments, shape: tuple[int, ...], later: int = 0, *, pictures: int = 0, masked: bool = False
) -> Noise:
    """Return the noise that a call asks for, ``shape`` for all its pictures, and ``later`` draws of steps.

    In diffusers' order: of ``pictures`` to begin with a sample of their latents, the first latents, with a mask another
    sample, which is used for nothing; then for each step that draws one for all pictures. Raises ArgumentError.
    """
    seed, generator, latents = (arguments.get(name) for name in ("seed", "generator", "latents"))
    if seed is not None and generator is not None:
        raise ArgumentError("seed", expected="none beside a generator", found=repr(seed), fix="leave one of them out")
    count = shape[0]
    if len(getattr(latents, "shape", ())) == len(shape) + 1:
        whole = read_latents(latents, (1 + later, *shape))
        return Noise(whole[0], whole[1:], (None,) * count)
    given = None if latents is None else read_latents(latents, shape)

    def order(images: int, encoded: int) -> list[tuple[int, ...]]:
        """The shapes of all draws of one generator."""
        one, all_of_them = (encoded, *shape[1:]), (images, *shape[1:])
        return [one] * (encoded > 0) + [all_of_them] * (given is None) + [one] * masked + [all_of_them] * later

    own = order(1, min(pictures, 1))
    if isinstance(generator, Sequence):
        each = [_generated(one, own) for one in _one_each("generator", generator, count)]
        drawn, seeds, alone = _together([d for d, _ in each]), tuple(known for _, known in each), True
    elif generator is not None:
        drawn, known = _generated(generator, order(count, pictures))
        seeds, alone = (known,) * count, False
    elif isinstance(seed, Sequence) and not isinstance(seed, str):
        numbers = [_whole(one) for one in _one_each("seed", seed, count)]
        drawn = _together([_draws(Stream(one), own) for one in numbers])
        seeds, alone = tuple(numbers), True
    else:
        number = secrets.randbits(32) if seed is None else _whole(seed)
        drawn, seeds, alone = _draws(Stream(number), order(count, pictures)), (number,) * count, False
    encoding = np.concatenate([drawn.pop(0)] * (1 if alone else count // pictures)) if pictures else None
    first = drawn.pop(0) if given is None else given
    steps = drawn[int(masked) :]
    rest = np.stack(steps) if steps else np.empty((0, *shape), np.float32)
    return Noise(first, rest, seeds if given is None else (None,) * count, alone and given is None, encoding)


def _draws(stream: Stream, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    return [stream.randn(shape) for shape in shapes]


def _together(each: list[list[Floats]]) -> list[Floats]:
    """Return the draws of generators of single pictures as draws of all pictures."""
    return [np.concatenate(draws) for draws in zip(*each, strict=True)]


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


def _generated(generator: Any, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Floats], int | None]:
    """Let a torch generator draw, as diffusers does, and return the seed that draws the same here, if there is one.

    torch is not imported: a generator's own state is a tensor, and makes others.
    """
    try:
        seed = int(generator.initial_seed())
        like = generator.get_state().float()
        empty = [like.new_empty(shape, device=generator.device) for shape in shapes]
        drawn: list[Floats] = [each.normal_(generator=generator).cpu().numpy() for each in empty]
    except (AttributeError, TypeError):
        raise ArgumentError(
            "generator",
            expected="a torch generator, or a list of them",
            found=type(generator).__name__,
            fix="pass a whole number as seed",
        ) from None
    own = _draws(Stream(seed), shapes)
    # A generator that has drawn before, or one of a GPU, is not at the start of a CPU generator's stream.
    same = all(np.allclose(each, ours, rtol=0, atol=1e-5) for each, ours in zip(drawn, own, strict=True))
    return (own, seed) if same else (drawn, None)
