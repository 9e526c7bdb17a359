"""Pictures that a call begins with, and masks of what to paint: read as diffusers' image processors read them."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from koala_bundle.errors import ArgumentError, first_line
from koala_bundle.manifest import Manifest
from koala_bundle.spec import Profile
from koala_runtime.arguments import Arguments
from koala_runtime.arrays import Floats
from koala_runtime.samplers import Table

IMAGE_STRENGTH, MASK_STRENGTH = 0.3, 0.9999
"""Defaults of diffusers' StableDiffusionXLImg2ImgPipeline and StableDiffusionXLInpaintPipeline."""
MOST_PIXELS = 8192 * 8192
"""Of a picture file: 200 MB of colours."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Kinds of picture files that are read. For some others Pillow starts a program (Ghostscript for EPS)."""
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class Source:
    """What ``count`` pictures begin with.

    ``pixels`` uint8 [m, height, width, 3], one or more that are taken in turn; ``mask`` float32 [k, 1, height / 8,
    width / 8], 1 where to paint, None to paint everything. At ``strength`` 1 with a mask nothing is seen of what is
    painted over.
    """

    pixels: NDArray[np.uint8]
    mask: Floats | None
    strength: float | np.floating[Any]

    @property
    def masked(self) -> int:
        """How many masked pictures diffusers encodes, for nothing: 0 without a mask."""
        return 0 if self.mask is None else max(len(self.mask), len(self.pixels))

    @property
    def begins_with_noise(self) -> bool:
        """Whether only what is kept comes from the picture."""
        return self.mask is not None and self.strength == 1

    @property
    def digests(self) -> tuple[str, str | None]:
        """SHA-256 of the pixels and of the mask."""
        pixels, mask = (None if each is None else hashlib.sha256(each.tobytes()) for each in (self.pixels, self.mask))
        assert pixels is not None
        return pixels.hexdigest(), None if mask is None else mask.hexdigest()

    def skipped(self, steps: int) -> int:
        """Return how many of ``steps`` are left out, as diffusers counts them."""
        return max(steps - min(int(steps * self.strength), steps), 0)

    def begin(self, table: Table, encoded: Floats, noise: Floats) -> Floats:
        """Return the first latents of pictures whose latents are ``encoded``."""
        if self.begins_with_noise:
            return noise * np.float32(table.init_noise_sigma)
        return _at(table.levels[0], encoded, noise)

    def kept(self, table: Table, encoded: Floats, noise: Floats) -> Floats:
        """Return what the latents are outside of the mask after every row, [rows, *latents]."""
        return np.stack([*(_at(level, encoded, noise) for level in table.levels[1:]), encoded])


def _at(level: NDArray[np.float64], encoded: Floats, noise: Floats) -> Floats:
    return np.float32(level[0]) * encoded + np.float32(level[1]) * noise


def open_picture(path: Path, what: str, fix: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Return a picture file's picture, read to its end. Raises ArgumentError of ``what``.

    Its size is looked at before its pixels are unpacked: a file of some kilobytes can hold gigabytes of one colour.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about sizes and damaged metadata
            with Image.open(path, formats=formats) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    found = f"{picture.width} x {picture.height} pixels"
                    raise ArgumentError(what, expected=f"at most {MOST_PIXELS:,} pixels", found=found, fix=fix)
                picture.load()  # text may come after the pixels
                return picture
    except ArgumentError:
        raise
    except FileNotFoundError:
        found = "no file"
    except UnidentifiedImageError:
        found = "a file of another kind"
    except Exception as error:  # each of Pillow's formats has its own
        found = f"a file that cannot be read ({first_line(error)})"
    raise ArgumentError(what, expected="a picture", found=found, fix=fix)


def read_source(manifest: Manifest, count: int, arguments: Arguments) -> Source | None:
    """Return what ``count`` pictures of a call begin with, None if that is noise. Raises ArgumentError."""
    image, mask, strength = (arguments.get(name) for name in ("image", "mask_image", "strength"))
    if image is None:
        for name, value in (("mask_image", mask), ("strength", strength)):
            if value is not None:
                raise ArgumentError(name, expected="an image, too", found="none", fix="pass image, or leave this out")
        return None
    profile = manifest.profile
    if not profile.encoder:
        raise ArgumentError(
            "image",
            expected="a bundle with the VAE's encoder",
            found="one without",
            fix="export the bundle again with its encoder",
        )
    if arguments.get("latents") is not None:
        raise ArgumentError("latents", expected="none beside image", found="latents", fix="leave one of them out")
    pixels = _some("image", [_picture(each, profile) for each in _each("image", image)], count)
    masks = None
    if mask is not None:
        scale = manifest.spec.vae.scale_factor
        some = [_mask(each, profile)[None, ::scale, ::scale] for each in _each("mask_image", mask)]
        masks = _some("mask_image", some, count)
    return Source(pixels, masks, _strength(strength, masked=mask is not None))


def _strength(value: Any, *, masked: bool) -> float | np.floating[Any]:
    if value is None:
        return MASK_STRENGTH if masked else IMAGE_STRENGTH
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= 1:
        raise ArgumentError("strength", expected="a number from 0 to 1", found=repr(value), fix="pass 0.3 or so")
    return value if isinstance(value, np.floating) else float(value)  # float32's products are rounded


def _each(argument: str, given: Any) -> list[Any]:
    """Return pictures one by one: of a list, of an array with an axis in front, or the only one."""
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, list | tuple) and given:
        return [each for some in given for each in _each(argument, some)]
    array = _array(argument, given)
    single = array.ndim == 2 or (array.ndim == 3 and 3 in (array.shape[0], array.shape[2]) and argument == "image")
    single = single or (array.ndim == 3 and 1 in (array.shape[0], array.shape[2]))
    return [array] if single else [*array]


def _array(argument: str, given: Any) -> NDArray[Any]:
    """Return an array of two to four axes, whatever library made it."""
    try:
        for method in ("detach", "cpu"):
            given = getattr(given, method)() if hasattr(given, method) else given
        array = np.asarray(given)
    except Exception:  # whatever the other library raises
        array = np.empty(0)
    if array.dtype.kind not in "buif" or not 2 <= array.ndim <= 4 or not array.size:
        raise ArgumentError(
            argument,
            expected="a PIL picture, an array of one or more, or a list",
            found=f"{type(given).__name__}{f' of shape {[*array.shape]}' if array.size and array.ndim else ''}",
            fix="pass a picture of the bundle's size",
        )
    return array


def _some(argument: str, each: list[NDArray[Any]], count: int) -> NDArray[Any]:
    if count % len(each):
        raise ArgumentError(
            argument,
            expected=f"one, or a number that divides {count} pictures",
            found=str(len(each)),
            fix="pass one for all, or one per picture",
        )
    return np.stack(each)


def _picture(given: Any, profile: Profile) -> NDArray[np.uint8]:
    """Return one picture, uint8 [height, width, 3]; a PIL picture of another size is resized as diffusers does."""
    if isinstance(given, Image.Image):
        if given.mode.startswith(("I", "F")):
            raise ArgumentError(
                "image",
                expected="a picture of 8 bits per channel",
                found=f"one of mode {given.mode}",
                fix="convert it, or pass floats in [0, 1]",
            )
        return np.asarray(_resized(given.convert("RGB"), profile))
    is_channels_first = given.ndim == 3 and given.shape[0] == 3 and given.shape[2] != 3
    array: NDArray[Any] = given.transpose(1, 2, 0) if is_channels_first else given
    _check_shape("image", array, (profile.height, profile.width, 3))
    if array.dtype == np.uint8:
        return array.astype(np.uint8, copy=False)
    return (_unit("image", array) * 255).round().astype(np.uint8)


def _mask(given: Any, profile: Profile) -> Floats:
    """Return one mask, float32 [height, width], 0 or 1: of a PIL picture the lighter half of grey, of arrays from 0.5.

    diffusers divides by 255 what is a PIL picture, and nothing else, so that in uint8 all but 0 is to be painted.
    """
    if isinstance(given, Image.Image):
        levels = np.asarray(_resized(given, profile).convert("L"))
        return np.where(levels / np.float32(255) >= _HALF, np.float32(1), np.float32(0))
    array = given.reshape(tuple(side for side in given.shape if side != 1)) if given.ndim == 3 else given
    _check_shape("mask_image", array, (profile.height, profile.width))
    if not np.isfinite(array).all():
        raise ArgumentError("mask_image", expected="0 or 1", found="NaN or infinity", fix="pass 1 where to paint")
    return np.where(array >= _HALF, np.float32(1), np.float32(0))


def _resized(picture: Image.Image, profile: Profile) -> Image.Image:
    size = (profile.width, profile.height)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _check_shape(argument: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ArgumentError(
            argument,
            expected=f"shape {[*shape]}, or a PIL picture, which is resized",
            found=str([*array.shape]),
            fix="pass it at the bundle's size",
        )


def _unit(argument: str, array: NDArray[Any]) -> Floats:
    values = array.astype(np.float32)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ArgumentError(
            argument, expected="values from 0 to 1, or uint8", found="others", fix="divide by 255, or pass uint8"
        )
    return values
