"""The training set of the U-Net: pictures drawn once, encoded once, kept as latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from koala_tiny.autoencoder import to_tensor
from koala_tiny.drawing import draw, soften
from koala_tiny.fit import save_state
from koala_tiny.scenes import SIZE, Request, Scene, training_pair

SHARD = 4096  # pictures per file


@dataclass(frozen=True)
class Latents:
    """``latents`` float16 [N, 4, 16, 16], scaled; ``time_ids`` int16 [N, 6] as SDXL's; one request per picture."""

    latents: Tensor
    time_ids: Tensor
    requests: list[Request]


def load_latents(vae: Any, folder: Path, count: int) -> Latents:
    """Draw and encode ``count`` pictures, or find them in ``folder`` from the last time."""
    requests, latents, time_ids = [], [], []
    folder.mkdir(parents=True, exist_ok=True)
    for start in track(range(0, count, SHARD), description="drawing"):
        file = folder / f"{start:06d}.pt"
        cases = [_case(seed) for seed in range(start, min(start + SHARD, count))]
        if not file.is_file():
            save_state(_encode(vae, cases), file)
        encoded = torch.load(file, weights_only=True)
        requests += [case.request for case in cases]
        latents.append(encoded)
        time_ids.append(torch.tensor([case.time_ids() for case in cases], dtype=torch.int16))
    return Latents(torch.cat(latents), torch.cat(time_ids), requests)


def pictures_of(seeds: Iterable[int]) -> list[NDArray[np.uint8]]:
    """Return the training pictures of ``seeds``."""
    return [_case(seed).picture() for seed in seeds]


@dataclass(frozen=True)
class _Case:
    """One picture; some are softened or cropped, and their time_ids say so, as SDXL's training does."""

    request: Request
    scene: Scene
    original: int
    top: int
    left: int

    def picture(self) -> NDArray[np.uint8]:
        picture = draw(self.scene, left=self.left, top=self.top)
        return picture if self.original == SIZE else soften(picture, self.original)

    def time_ids(self) -> tuple[int, ...]:
        """Original size, corner of the crop, target size; heights first, pixels."""
        return self.original, self.original, self.top, self.left, SIZE, SIZE


def _case(seed: int) -> _Case:
    rng = Random(f"picture {seed}")
    request, scene = training_pair(rng)
    kind = rng.random()
    if kind < 0.08:
        return _Case(request, scene, rng.randint(SIZE // 8, SIZE * 3 // 4), 0, 0)
    if kind < 0.16:
        return _Case(request, scene, SIZE, rng.randint(0, 40), rng.randint(0, 40))
    return _Case(request, scene, SIZE, 0, 0)


@torch.no_grad()
def _encode(vae: Any, cases: list[_Case]) -> Tensor:
    parts = []
    for start in range(0, len(cases), 64):
        pictures = to_tensor([case.picture() for case in cases[start : start + 64]])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist.mean
        parts.append((latents.float() * vae.config.scaling_factor).half())
    return torch.cat(parts)
