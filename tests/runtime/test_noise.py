"""A seed gives the noise that ``torch.randn`` gives with a CPU generator: same order, same values to 1e-6.

float32 normals reach about 5.8, where one unit in the last place is 5e-7; the bound is two of these.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from koala_runtime.noise import randn

BOUND = 1e-6
SEEDS = (0, 1, 42, 2**32 - 1, 2**40 + 7, -5)
SHAPES = (
    (16,),
    (1, 4, 8, 12),
    (1, 4, 128, 128),
    (3, 4, 64, 96),
    # Not multiples of 16: the tail is drawn anew over the block before it.
    (17,),
    (31,),
    (33,),
    (1, 3, 5, 7),
    (2, 4, 11, 13),
)


def distance(shape: tuple[int, ...], seed: int) -> float:
    wanted = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    noise = randn(shape, seed)
    assert noise.shape == wanted.shape
    assert noise.dtype == wanted.dtype == np.float32
    return float(np.abs(noise - wanted).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_that_of_torch(shape: tuple[int, ...], seed: int) -> None:
    assert distance(shape, seed) <= BOUND


@given(seed=st.integers(-(2**63), 2**64 - 1), size=st.integers(16, 5000))
@example(seed=2**64 - 1, size=16)
@example(seed=-(2**63), size=17)
@settings(deadline=None, max_examples=200)
def test_every_seed_and_size(seed: int, size: int) -> None:
    assert distance((size,), seed) <= BOUND


def test_seeds_differ_and_repeat() -> None:
    assert np.array_equal(randn((64,), 3), randn((64,), 3))
    assert np.abs(randn((64,), 3) - randn((64,), 4)).max() > 0.1
    # torch keeps the low 32 bits of a seed, and so must this.
    assert np.array_equal(randn((64,), 3), randn((64,), 3 + 2**32))


def test_numpy_generators_of_others_are_left_alone() -> None:
    np.random.seed(0)
    wanted = np.random.random()
    np.random.seed(0)
    randn((64,), 3)
    assert np.random.random() == wanted


def test_noise_is_normal() -> None:
    noise = randn((1_000_000,), 7)
    assert np.isfinite(noise).all()
    # The standard errors of mean and deviation are 0.001 and 0.0007.
    assert abs(float(noise.mean())) < 0.005
    assert abs(float(noise.std()) - 1) < 0.004
    within = float((np.abs(noise) < 1).mean())
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.003)


@pytest.mark.parametrize("shape", [(15,), (1,), (0,), (3, 5), ()], ids=str)
def test_less_than_a_block_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"blocks of 16; {math.prod(shape)} elements"):
        randn(shape, 0)
