"""Whether the latents that a picture is decoded from are finite, and if not, the step from which on they are not.

The latents come to the host with the images, in the same graph; looking at them takes some ten microseconds. The step
is only looked for when something is wrong, by drawing again step by step.
"""

from __future__ import annotations

import numpy as np

from koala_bundle.errors import KoalaError
from koala_runtime.devices.base import Array
from koala_runtime.run import Run


def check_finite(run: Run, latents: Array) -> None:
    """Raise KoalaError, naming the step, if the finished ``latents`` of ``run`` hold NaN or infinity."""
    if np.isfinite(latents).all():
        return
    count = len(run.program.steps)
    run.encode()
    for index in range(count):
        run.step(index)
        if not np.isfinite(run.read(run.program.latents[index + 1])).all():
            where = f"from step {index + 1} of {count} on"
            break
    else:
        where = "after latents that a loop or callback has set"
    raise KoalaError(
        "latents",
        expected="finite values",
        found=f"NaN or infinity {where}, so that there is no picture",
        fix="lower guidance_scale; if that does not help, export the bundle with precision fp32",
    )
