"""The numbers that one batch of a request puts into a program's inputs. Pure: no device, no files."""

from __future__ import annotations

import numpy as np

from koala_bundle.manifest import Manifest
from koala_runtime.devices.base import Array
from koala_runtime.request import Request


def prepare(manifest: Manifest, request: Request, chunk: slice) -> dict[str, Array]:
    """Return the inputs for the prompts ``chunk`` of a request, by tensor name.

    A batch is static: where ``chunk`` is shorter, its last prompt fills the rows that are left, and their latents are
    zero. Rows of the text encoders are [negatives, prompts] with guidance, [prompts] without. What changes with the
    step is [steps, 1]; ``koala_bundle.tensors.components`` describes every tensor.
    """
    profile, schedule = manifest.profile, request.schedule
    wanted = range(len(request.prompts))[chunk]
    rows = [*wanted, *[wanted[-1]] * (profile.batch - len(wanted))]
    ids, ids_2 = (all_ids[rows] for all_ids in request.prompt_ids)
    texts: list[str | None] = [request.prompts[row] for row in rows]
    if profile.cfg:
        negative_ids, negative_ids_2 = (all_ids[rows] for all_ids in request.negative_ids)
        ids, ids_2 = np.concatenate([negative_ids, ids]), np.concatenate([negative_ids_2, ids_2])
        texts = [*(request.negative_prompts[row] for row in rows), *texts]
    zeroed = manifest.spec.force_zeros_for_empty_prompt
    steps = len(schedule.timesteps)
    noise = np.zeros((profile.batch, *request.latents.shape[1:]), np.float32)
    noise[: len(wanted)] = request.latents[chunk] * np.float32(schedule.init_noise_sigma)
    inputs: dict[str, Array] = {
        "input_ids": ids,
        "input_ids_2": ids_2,
        "prompt_mask": np.array([0.0 if text is None and zeroed else 1.0 for text in texts], np.float32),
        "time_ids": np.tile(request.time_ids, (profile.rows, 1)),
        "timestep": schedule.timesteps.reshape(steps, 1),
        "sigma": schedule.sigmas[:-1].reshape(steps, 1),
        "sigma_next": schedule.sigmas[1:].reshape(steps, 1),
        "latents": noise,
    }
    if profile.cfg:
        # At 1 the guided prediction is the prompt's own: u + 1 * (c - u) = c.
        inputs["guidance_scale"] = np.array([max(request.guidance_scale, 1.0)], np.float32)
    return inputs
