"""What a backend is: it draws the same picture with the same checkpoint as all others, as fast as it can.

A backend is a class that takes a ``Work``; it is made and used in a process of its own (``worker``). Ours are in
``ours``, others' in ``theirs``; ``registry`` finds them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from koala_verify.pixels import Pixels

TEXT, STEPS, VAE, HOST = PARTS = ("text", "steps", "vae", "host")
"""Where the time of a picture goes; ``host`` is all the rest, copies among it."""

REFERENCE = "reference"
"""diffusers in float32, what pictures are compared with."""

OPTIMUM = "optimum-onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@dataclass(frozen=True)
class Work:
    """One run, the same for all: size, batch and precision are the bundle's.

    ``source`` is a checkpoint folder or hub name; ``scratch`` a folder for what a backend prepares before it is timed.
    """

    bundle: str
    source: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scratch: str


class Backend(Protocol):
    """Loads when it is made. ``packages`` are what has to be installed for it, by distribution name.

    A class with a static ``prepare(work)`` has it called in a process of its own first: what others do once (export,
    convert), and is no part of a start.
    """

    packages: tuple[str, ...]

    def draw(self) -> Pixels:
        """Return the pictures, uint8 [batch, height, width, 3], finished."""

    def parts(self) -> dict[str, float]:
        """Draw once more and return the seconds of each of PARTS."""
