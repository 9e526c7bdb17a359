"""What a backend is: a class that loads a pipeline from a ``Workload`` and draws its pictures as fast as it can.

Each backend runs in a process of its own (``koala_bench.worker``). ``registry`` finds backends by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from koala_verify.pixels import Pixels

TEXT, STEPS, VAE, HOST = PHASES = ("text", "steps", "vae", "host")
"""Where the time of a picture goes: text encoders, denoising steps, VAE decoder; ``host`` is everything else."""

REFERENCE = "reference"
"""diffusers in float32; all pictures are compared with its pictures."""


@dataclass(frozen=True)
class Workload:
    """What every backend draws. Size, batch and precision are those of ``bundle``.

    ``source`` is a checkpoint folder or hub name; ``scratch`` is a folder for files made by ``prepare``. ``loras`` are
    those of the bundle, each as ``FILE[:SCALE]``.
    """

    bundle: str
    source: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scratch: str
    loras: tuple[str, ...] = ()


class Backend(Protocol):
    """A pipeline, loaded by its constructor. ``packages`` are the distributions that its users install.

    A backend may define a static method ``prepare(workload)`` for work that its users do once, such as an export. It
    runs first, in a process of its own, and is not timed.
    """

    packages: tuple[str, ...]

    def draw(self) -> Pixels:
        """Return the pictures in host memory, uint8 [batch, height, width, 3]."""

    def phase_seconds(self) -> dict[str, float]:
        """Draw once more and return the seconds spent in each of PHASES."""
