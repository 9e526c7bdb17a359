"""The recipe of a picture: everything that draws it again, kept in the PNG file itself.

A file carries it twice: as JSON under the key ``koala``, which this module reads, and as the ``parameters`` text of the
AUTOMATIC1111 web UI, which many viewers and sites read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koala_bundle import __version__
from koala_bundle.codec import CodecError, from_json, parse_json
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_bundle.scheduler_keys import KEYS
from koala_bundle.schedulers import SchedulerSpec
from koala_bundle.targets import Target
from koala_runtime.pictures import open_picture
from koala_runtime.request import Request
from koala_runtime.samplers.names import label

SCHEMA_VERSION = 4
KEY, A1111_KEY = "koala", "parameters"
MOST_PICTURES = 10_000
"""Of one call that a recipe repeats: the noise of all of them is drawn again."""
_FIX = "pass a PNG file that koala-trt wrote, unchanged"


@dataclass(frozen=True)
class Recipe:
    """One picture of a call.

    ``seed`` drew the noise of all ``count`` pictures of the call, of which this is the one at ``index``, or with
    ``seed_alone`` that of this one. It is None where the caller brought latents or a generator that had drawn before;
    ``embeddings`` says that he brought embeddings, ``image`` and ``mask_image`` are SHA-256 of the pixels with which
    it began. Such a picture cannot be drawn again. ``mark`` says that its pixels have the watermark. Sizes are
    (height, width) in pixels. ``bundle`` is the SHA-256 of the bundle's manifest.json, ``version`` that of koala-trt.
    """

    schema_version: int
    version: str
    bundle: str
    target: str
    prompt: str | None
    prompt_2: str | None
    negative_prompt: str | None
    negative_prompt_2: str | None
    weighted: bool
    embeddings: bool
    seed: int | None
    seed_alone: bool
    image: str | None
    mask_image: str | None
    strength: float | None
    index: int
    count: int
    num_inference_steps: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    denoising_end: float | None
    guidance_scale: float
    guidance_rescale: float
    scheduler: SchedulerSpec
    eta: float
    height: int
    width: int
    original_size: tuple[float, ...]
    crops_coords_top_left: tuple[float, ...]
    target_size: tuple[float, ...]
    negative_original_size: tuple[float, ...]
    negative_crops_coords_top_left: tuple[float, ...]
    negative_target_size: tuple[float, ...]
    mark: bool

    @property
    def parameters(self) -> str:
        """The recipe as the A1111 web UI writes it: prompt, negative prompt, and one line of settings."""
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": label(self.scheduler),
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.bundle[:10],
            "Version": f"koala-trt {self.version}",
        }
        lines = [self.prompt or ""]
        if self.negative_prompt is not None:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None))
        return "\n".join(lines)


def make_recipe(request: Request, index: int, manifest: Manifest, digest: str, target: Target) -> Recipe:
    """Return the recipe of a call's picture; ``digest`` is that of the bundle."""
    profile, sides, source = manifest.profile, (request.prompt, request.negative), request.source
    sizes, negative_sizes = (tuple(float(side) for side in each.time_ids) for each in sides)
    image, mask = (None, None) if source is None else source.digests
    return Recipe(
        schema_version=SCHEMA_VERSION,
        version=__version__,
        bundle=digest,
        target=target.name,
        prompt=request.prompt.texts[index],
        prompt_2=request.prompt.texts_2[index],
        negative_prompt=request.negative.texts[index],
        negative_prompt_2=request.negative.texts_2[index],
        weighted=request.weighted,
        embeddings=any(each.embeddings is not None for each in sides),
        seed=request.noise.seeds[index],
        seed_alone=request.noise.alone,
        image=image,
        mask_image=mask,
        strength=None if source is None else float(source.strength),
        index=index,
        count=request.count,
        num_inference_steps=request.schedule.count,
        timesteps=request.schedule.timesteps,
        sigmas=request.schedule.sigmas,
        denoising_end=request.denoising_end,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        scheduler=request.scheduler.own,
        eta=request.schedule.eta,
        height=profile.height,
        width=profile.width,
        original_size=sizes[:2],
        crops_coords_top_left=sizes[2:4],
        target_size=sizes[4:],
        negative_original_size=negative_sizes[:2],
        negative_crops_coords_top_left=negative_sizes[2:4],
        negative_target_size=negative_sizes[4:],
        mark=request.mark,
    )


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a PNG file. Raises ArgumentError if there is no such file, or no readable recipe in it."""
    text = _stored_text(path)
    if text is None:
        raise ArgumentError(str(path), expected="a picture with a recipe", found="none in it", fix=_FIX)
    try:
        data = parse_json(text.encode())
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ArgumentError(
                f"{path}: schema_version",
                expected=str(SCHEMA_VERSION),
                found=str(version),
                fix="upgrade koala-trt, which is older than the picture",
            )
        if version != SCHEMA_VERSION:
            raise CodecError("schema_version", str(SCHEMA_VERSION), str(version))
        recipe = from_json(Recipe, data)
        if recipe.scheduler.class_name not in KEYS:
            raise CodecError("scheduler.class_name", "a known class", recipe.scheduler.class_name)
        if misfit := recipe.scheduler.misfit():
            raise CodecError(f"scheduler.{misfit.key}", misfit.expected, misfit.found)
        if not 1 <= recipe.num_inference_steps <= (most := recipe.scheduler["num_train_timesteps"]):
            raise CodecError("num_inference_steps", f"1 to {most}", str(recipe.num_inference_steps))
        if recipe.denoising_end is not None and not 0 <= recipe.denoising_end <= 1:
            raise CodecError("denoising_end", "a share from 0 to 1", str(recipe.denoising_end))
        if not 1 <= recipe.count <= MOST_PICTURES:
            raise CodecError("count", f"1 to {MOST_PICTURES}", str(recipe.count))
        if not 0 <= recipe.index < recipe.count:
            raise CodecError("index", f"0 to {recipe.count - 1}", str(recipe.index))
    except (ValueError, RecursionError) as error:
        raise ArgumentError(
            str(path), expected="a recipe that koala-trt reads", found=f"a damaged one ({error})", fix=_FIX
        ) from None
    return recipe


def _stored_text(path: Path) -> str | None:
    """Return the JSON that a picture carries, None if it carries none."""
    text: str | None = getattr(open_picture(path, str(path), _FIX, ("PNG",)), "text", {}).get(KEY)
    return text
