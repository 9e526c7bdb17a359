"""Refuses, before it waits for its turn, what a pipeline would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from PIL import Image

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import open_manifest
from koala_bundle.swap import whole
from koala_bundle.targets import CPU
from koala_runtime.arguments import Arguments
from koala_runtime.prompts import open_encoder
from koala_runtime.request import make_request
from koala_runtime.samplers import available, label, make_scheduler
from koala_runtime.selection import check_tokenizers
from koala_serve.batching import make_row
from koala_serve.drawing import call_arguments, open_image
from koala_serve.image_request import ImageRequest
from koala_serve.settings import Settings


class RequestChecker:
    """A bundle without its engines: what can be asked of it. Raises BundleError for one that is damaged."""

    def __init__(self, bundle: Path, settings: Settings) -> None:
        path = whole(bundle.absolute())
        self.manifest, self.digest = open_manifest(path)
        self._encoder = open_encoder(path, self.manifest, check_tokenizers(path, self.manifest, verify=False))
        self._scheduler = make_scheduler(self.manifest.spec.scheduler)
        self.scheduler = label(self.manifest.spec.scheduler)
        self.schedulers = tuple(available(self.manifest.spec.scheduler))
        self._settings = settings

    @property
    def size(self) -> str:
        """Of every picture: width x height in pixels."""
        return f"{self.manifest.profile.width}x{self.manifest.profile.height}"

    @property
    def takes_images(self) -> bool:
        """Whether pictures can begin with a picture."""
        return any(entry.name == "vae_encoder" for entry in self.manifest.components)

    def check_limits(self, request: ImageRequest) -> None:
        """Refuse what asks for too much. Raises ArgumentError."""
        limits = self._settings
        for what, value, limit in (
            ("n", request.count, min(limits.count, limits.queue)),
            ("num_inference_steps", request.num_inference_steps or 0, limits.steps),
            ("prompt", max(len(request.prompt), len(request.negative_prompt or "")), limits.prompt),
        ):
            if value > limit:
                found = str(value) if value < 10 * limit else "far more"
                raise ArgumentError(what, expected=f"{limit} at most", found=found, fix="ask for less")

    def check(self, request: ImageRequest) -> int:
        """Return how many tokens the prompt has; may run in any thread. Raises ArgumentError."""
        for name, file in {"image": request.image, "mask_image": request.mask}.items():
            if file is not None:
                check_size(name, open_image(file), self._settings.pixels)
        arguments = call_arguments([make_row(request, 0)], request.shared)
        prompt = arguments.pop("prompt")
        made = make_request(self.manifest, CPU, self._encoder, self._scheduler, prompt, cast("Arguments", arguments))
        return int(made.prompt.tokens[0].ends.sum())


def check_size(name: str, image: Image.Image, most: int) -> None:
    """Refuse a picture whose pixels would take too much memory; its header alone has been read."""
    if image.width * image.height > most:
        raise ArgumentError(
            name,
            expected=f"{most / 1e6:g} million pixels at most",
            found=f"{image.width} x {image.height}",
            fix="make it smaller",
        )
