"""A picture's recipe as rows of a table."""

from __future__ import annotations

import unicodedata

from koala_runtime.recipe import Recipe
from koala_runtime.samplers import label


def recipe_rows(recipe: Recipe) -> dict[str, str]:
    """Return what a recipe says, by name, in the order in which it is shown.

    Control characters are escaped: a stranger's picture has no commands for the terminal.
    """
    sampler = label(recipe.scheduler)
    rows = {
        "prompt": "-" if recipe.prompt is None else recipe.prompt,
        "negative prompt": "-" if recipe.negative_prompt is None else recipe.negative_prompt,
        **_rare(recipe),
        "seed": "none: drawn from latents" if recipe.seed is None else str(recipe.seed),
        "picture": f"{recipe.index + 1} of {recipe.count}",
        "sampling": f"{recipe.num_inference_steps} steps, guidance {recipe.guidance_scale:g}, {sampler}",
        "size": f"{recipe.width} x {recipe.height} px",
        "original size": _size(recipe.original_size),
        "crop corner": _size(recipe.crops_coords_top_left),
        "target size": _size(recipe.target_size),
        "bundle": recipe.bundle,
        "drawn on": f"{recipe.target}, koala-trt {recipe.version}",
    }
    return {name: "".join(map(_shown, text)) for name, text in rows.items()}


def _shown(character: str) -> str:
    is_control = unicodedata.category(character) == "Cc" and character != "\n"
    return character.encode("unicode_escape").decode() if is_control else character


def _rare(recipe: Recipe) -> dict[str, str]:
    """What few pictures have, where this one has it."""
    rows = {
        "for the second text encoder": recipe.prompt_2,
        "negative, for the second": recipe.negative_prompt_2,
        "timesteps": ", ".join(f"{time:g}" for time in recipe.timesteps) or None,
        "sigmas": ", ".join(f"{sigma:g}" for sigma in recipe.sigmas) or None,
        "began with": None if recipe.image is None else f"picture {recipe.image[:12]}, strength {recipe.strength}",
        "painted in": None if recipe.mask_image is None else f"mask {recipe.mask_image[:12]}",
        "words": "weighted" if recipe.weighted else None,
        "embeddings": "brought by the caller" if recipe.embeddings else None,
    }
    return {name: value for name, value in rows.items() if value is not None}


def _size(size: tuple[float, ...]) -> str:
    """Return (height, width) as width x height, as sizes are shown everywhere else."""
    return " x ".join(f"{side:g}" for side in reversed(size))
