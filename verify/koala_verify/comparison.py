"""What ``verify`` returns: figures of every comparison, and whether each is within its bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from koala_bundle.spec import Profile
from koala_bundle.tensors import IOTensor
from koala_export.gate import Array, accepted, compare
from koala_verify.pixels import Pixels, psnr

MIN_PSNR = {"fp32": 40.0, "fp16": 25.0}
"""The lowest PSNR of a picture against the reference, in decibels; see docs/verify.md."""

MAX_PIXEL_ERROR = 2 / 255
"""The largest difference of any pixel in a picture of an fp32 bundle."""


@dataclass(frozen=True)
class OutputComparison:
    """One output of a component, computed by ``runner``: ``onnx``, or a target.

    ``error`` is the largest difference, divided by the reference's largest value; ``psnr`` is in decibels.
    """

    component: str
    tensor: str
    runner: str
    error: float
    cosine: float
    psnr: float
    not_finite: int
    passed: bool


@dataclass(frozen=True)
class PictureComparison:
    """One picture: the ``largest`` difference of any pixel (0 to 1), PSNR in decibels, SSIM (Wang et al. 2004).

    ``clip_scores`` are the reference's and the bundle's. They and ``lpips`` are None where they are not available.
    """

    prompt: str
    seed: int
    largest: float
    psnr: float
    ssim: float
    lpips: float | None
    clip_scores: tuple[float, float] | None
    passed: bool


@dataclass(frozen=True)
class Verification:
    """All comparisons of a bundle. ``pairs`` has the reference's and the bundle's pixels for each of ``pictures``.

    ``skipped`` gives the reason for each metric that is not available.
    """

    bundle: str
    checkpoint: str
    target: str
    profile: Profile
    outputs: tuple[OutputComparison, ...]
    pictures: tuple[PictureComparison, ...]
    pairs: tuple[tuple[Pixels, Pixels], ...]
    skipped: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether everything is within its bounds."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Everything out of bounds; components come first, because a wrong component makes wrong pictures."""
        outputs = [f"{o.component}: {o.tensor} ({o.runner})" for o in self.outputs if not o.passed]
        return outputs + [f"picture {p.prompt!r}, seed {p.seed}" for p in self.pictures if not p.passed]


def compare_output(
    component: str, tensor: IOTensor, runner: str, reference: Array, result: Array, precision: str
) -> OutputComparison:
    """Compare one output of a component with PyTorch's; the bounds are those of the export's gate."""
    agreement = compare(reference, result)
    not_finite = int(np.size(result) - np.isfinite(result.astype(np.float32)).sum())
    return OutputComparison(
        component=component,
        tensor=tensor.name,
        runner=runner,
        error=agreement.error,
        cosine=agreement.cosine,
        psnr=psnr(reference, result, float(np.abs(reference.astype(np.float64)).max()) or 1.0),
        not_finite=not_finite,
        passed=accepted(agreement, tensor, precision) and not not_finite,
    )


def compare_picture(
    prompt: str,
    seed: int,
    reference: Pixels,
    picture: Pixels,
    lpips: float | None,
    clip_scores: tuple[float, float] | None,
    precision: str,
) -> PictureComparison:
    """Compare one picture, uint8 [height, width, 3], with diffusers'."""
    from skimage.metrics import structural_similarity

    largest = float(np.abs(reference.astype(int) - picture.astype(int)).max()) / 255
    decibels = psnr(reference, picture, 255.0)
    ssim = float(structural_similarity(reference, picture, channel_axis=-1))
    within = precision == "fp16" or largest <= MAX_PIXEL_ERROR
    passed = within and decibels >= MIN_PSNR[precision]
    return PictureComparison(prompt, seed, largest, decibels, ssim, lpips, clip_scores, passed)
