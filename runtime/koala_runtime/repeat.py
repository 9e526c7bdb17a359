"""Drawing a picture again from its recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest
from koala_runtime.output import PipelineOutput
from koala_runtime.recipe import Recipe
from koala_runtime.samplers import Schedule, make_scheduler
from koala_runtime.seeds import draw_noise


def check_repeatable(recipe: Recipe, digest: str, picture: Path, bundle: Path) -> None:
    """Raise ArgumentError unless the bundle with this digest can draw the recipe of ``picture`` again."""
    if recipe.bundle != digest:
        raise ArgumentError(
            f"{picture}: bundle",
            expected=f"{digest[:12]}, the digest of {bundle}",
            found=f"{recipe.bundle[:12]}",
            fix="pass the bundle that drew the picture, or export it again from the same checkpoint with the same "
            "options and versions",
        )
    if recipe.embeddings:
        raise ArgumentError(
            f"{picture}: prompt",
            expected="a prompt",
            found="none, because the picture was drawn from embeddings",
            fix="pass the same embeddings to the pipeline again",
        )
    if recipe.image is not None:
        raise ArgumentError(
            f"{picture}: image",
            expected="a picture that began with noise",
            found="one that began with another picture",
            fix="draw from that picture again: the recipe has the prompt, the strength and the seed",
        )
    if recipe.seed is None:
        raise ArgumentError(
            f"{picture}: seed",
            expected="a seed",
            found="none, because the picture was drawn from latents",
            fix="pass the same latents to the pipeline again, or another seed for a variation",
        )


def repeat_call(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """Return the arguments of a pipeline call that draws a recipe again, in the row of the batch where it was drawn.

    ``repeated_picture`` takes the picture out of what the call returns. ``recipe.seed`` must not be None.
    """
    assert recipe.seed is not None
    batch = manifest.profile.batch
    shape = manifest.component("vae_decoder").inputs[0].shape[1:]
    scheduler = make_scheduler(recipe.scheduler)
    table = scheduler.table(Schedule(recipe.num_inference_steps, recipe.eta, recipe.timesteps, recipe.sigmas))
    later = int(table.until(recipe.denoising_end, recipe.scheduler["num_train_timesteps"]).draws.sum())
    first = recipe.index - recipe.index % batch
    drawn = draw_noise({"seed": recipe.seed}, (1 if recipe.seed_alone else recipe.count, *shape), later)
    noise = np.concatenate([drawn.latents[None], drawn.later])
    if recipe.seed_alone:
        noise = np.concatenate([noise] * min(batch, recipe.count - first), axis=1)
    else:
        noise = noise[:, first : first + batch]
    return {
        "prompt": [recipe.prompt] * noise.shape[1],
        "prompt_2": recipe.prompt_2,
        "negative_prompt": recipe.negative_prompt,
        "negative_prompt_2": recipe.negative_prompt_2,
        "weighted": recipe.weighted,
        "num_inference_steps": recipe.num_inference_steps,
        "denoising_end": recipe.denoising_end,
        "guidance_scale": recipe.guidance_scale,
        "guidance_rescale": recipe.guidance_rescale,
        "timesteps": recipe.timesteps or None,
        "sigmas": recipe.sigmas or None,
        "scheduler": scheduler,
        "eta": recipe.eta,
        "latents": noise,
        "original_size": recipe.original_size,
        "crops_coords_top_left": recipe.crops_coords_top_left,
        "target_size": recipe.target_size,
        "negative_original_size": recipe.negative_original_size,
        "negative_crops_coords_top_left": recipe.negative_crops_coords_top_left,
        "negative_target_size": recipe.negative_target_size,
        "mark": recipe.mark,
    }


def repeated_picture(recipe: Recipe, manifest: Manifest, output: PipelineOutput) -> tuple[Any, Recipe]:
    """Return the picture that ``repeat_call`` drew, and its recipe with the seed and place of the call repeated."""
    row = recipe.index % manifest.profile.batch
    drawn = output.recipes[row]
    place = replace(drawn, index=recipe.index, count=recipe.count)
    return output.images[row], replace(place, seed=recipe.seed, seed_alone=recipe.seed_alone)
