"""The noise of pictures, at their start and in their steps: from a seed, a torch generator, or the caller's latents."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_runtime.arguments import Arguments
from koala_runtime.arrays import Floats, read_latents
from koala_runtime.noise import Stream

Draw: TypeAlias = Callable[[tuple[int, ...]], Floats]


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
    arguments: Arguments, shape: tuple[int, ...], later: int = 0, *, pictures: int = 0, masked: int = 0
) -> Noise:
    """Return the noise that a call asks for, ``shape`` for all its pictures, and ``later`` draws of steps.

    In diffusers' order: of ``pictures`` to begin with a sample of their latents, the first latents, of ``masked``
    pictures another sample, which is used for nothing; then for each step that draws one for all pictures. Of a list,
    each draws for its own picture, one after the other. Raises ArgumentError.
    """
    seed, generator, latents = (arguments.get(name) for name in ("seed", "generator", "latents"))
    if seed is not None and generator is not None:
        raise ArgumentError("seed", expected="none beside a generator", found=repr(seed), fix="leave one of them out")
    count = shape[0]
    if len(getattr(latents, "shape", ())) == len(shape) + 1:
        whole = read_latents(latents, (1 + later, *shape))
        return Noise(whole[0], whole[1:], (None,) * count)
    given = None if latents is None else read_latents(latents, shape)
    alone = isinstance(generator, Sequence) or (isinstance(seed, Sequence) and not isinstance(seed, str))
    # With a mask, a picture of several prompts is encoded once, by the first of the generators.
    encoded = count if alone and pictures and not masked else pictures
    rows = [*[encoded] * (pictures > 0), *[count] * (given is None), *[masked] * (masked > 0), *[count] * later]
    seeds: Sequence[int | None]
    if generator is not None:
        drawn, seeds = _generated(_one_each("generator", generator, count), rows, shape[1:])
    else:
        seed = secrets.randbits(32) if seed is None else seed
        seeds = numbers = [_whole(number) for number in _one_each("seed", seed, count)]
        drawn = _draws([Stream(number).randn for number in numbers], rows, shape[1:])
    encoding = np.concatenate([drawn.pop(0)] * (count // encoded)) if pictures else None
    first = drawn.pop(0) if given is None else given
    steps = drawn[int(masked > 0) :]
    rest = np.stack(steps) if steps else np.empty((0, *shape), np.float32)
    known = tuple(seeds) if alone else (seeds[0],) * count
    return Noise(first, rest, known if given is None else (None,) * count, alone and given is None, encoding)


def _draws(sources: Sequence[Draw], rows: Sequence[int], shape: tuple[int, ...]) -> list[Floats]:
    """Return draws of so many rows each: all of a single source, or one row of each of the first of several."""
    if len(sources) == 1:
        return [sources[0]((n, *shape)) for n in rows]
    return [np.concatenate([draw((1, *shape)) for draw in sources[:n]]) for n in rows]


def _whole(seed: object) -> int:
    if isinstance(seed, Integral) and not isinstance(seed, bool):
        return int(seed)
    raise ArgumentError("seed", expected="a whole number", found=repr(seed), fix="pass an int, or None")


def _one_each(argument: str, given: Any, count: int) -> Sequence[Any]:
    """Return what draws: one of a list for each picture, or the only one for all."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [given]
    if len(given) != count:
        raise ArgumentError(
            argument, expected=f"{count}, one per picture", found=str(len(given)), fix="pass one, or one per picture"
        )
    return given


def _generated(
    generators: Sequence[Any], rows: Sequence[int], shape: tuple[int, ...]
) -> tuple[list[Floats], list[int | None]]:
    """Let torch generators draw, as diffusers does, and return the seed of each that draws the same here, or None.

    torch is not imported: a generator's own state is a tensor, and makes others.
    """
    try:
        seeds = [int(generator.initial_seed()) for generator in generators]
        drawn = _draws([_draw_of(generator) for generator in generators], rows, shape)
    except (AttributeError, TypeError):
        raise ArgumentError(
            "generator",
            expected="a torch generator, or a list of them",
            found=type(generators[0]).__name__,
            fix="pass a whole number as seed",
        ) from None
    own = _draws([Stream(seed).randn for seed in seeds], rows, shape)
    known: list[int | None] = []
    for index, seed in enumerate(seeds):
        mine = slice(None) if len(seeds) == 1 else slice(index, index + 1)
        # A generator that has drawn before, or one of a GPU, is not at the start of a CPU generator's stream.
        same = all(np.allclose(a[mine], b[mine], rtol=0, atol=1e-5) for a, b in zip(drawn, own, strict=True))
        for theirs, ours in zip(drawn, own, strict=True):
            theirs[mine] = ours[mine] if same else theirs[mine]
        known.append(seed if same else None)
    return drawn, known


def _draw_of(generator: Any) -> Draw:
    like = generator.get_state().float()

    def draw(shape: tuple[int, ...]) -> Floats:
        drawn: Floats = like.new_empty(shape, device=generator.device).normal_(generator=generator).cpu().numpy()
        return drawn

    return draw
