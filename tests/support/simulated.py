"""koala-tiny on the simulated GPU (``koala_runtime.devices.simulated``), and what its pictures are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from koala_runtime import Pipeline

PROMPT = "a large red circle on a white background"
OTHER = "a small blue star left of a green ring on a black background"
STEPS = 4  # unless a test says otherwise


def simulated(bundle: Path, **options: Any) -> Pipeline:
    return Pipeline(bundle, "simulated", **options)


def device(pipe: Pipeline) -> Any:
    return pipe.executor.device


def draw(pipe: Pipeline, prompt: Any = PROMPT, **arguments: Any) -> NDArray[np.float32]:
    defaults = {"seed": 3, "num_inference_steps": STEPS, "output_type": "np"}
    images: NDArray[np.float32] = pipe(prompt, **defaults | arguments).images
    return images


def assert_equal_to_cpu(bundle: Path, steps: int = STEPS, **options: Any) -> None:
    """Also on the second picture, which is captured, and the third, which is not."""
    with Pipeline(bundle, "cpu") as cpu, simulated(bundle, **options) as gpu:
        for prompt in (OTHER, [PROMPT, OTHER]):
            wanted, got = (draw(pipe, prompt, num_inference_steps=steps) for pipe in (cpu, gpu))
            assert np.array_equal(wanted, got)
