"""``koala run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from koala_cli.build_commands import BundlePath
from koala_cli.screen import progress_bar, stderr, stdout
from koala_runtime.contract.errors import ArgumentError


def run(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; needs guidance above 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the bundle's own.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 or less: none. Default: the bundle's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same picture. Default: random.")] = None,
    output: Annotated[Path, typer.Option(help="Where to write the picture; the ending decides the format.")] = Path(
        "koala.png"
    ),
    target: Annotated[str | None, typer.Option(help="Which engines to run. Default: the best there are.")] = None,
) -> None:
    """Draw a picture. Needs engines in the bundle (koala engines)."""
    _check_output(output)
    from koala_runtime import Pipeline

    started = time.monotonic()
    with Pipeline(bundle, target) as pipeline:
        loaded = time.monotonic()
        count = steps or pipeline.manifest.sampling.num_inference_steps
        with progress_bar() as update:

            def on_step(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
                update(f"step {step + 1} of {count}", min((step + 1) / count, 1.0))
                return {}

            result = pipeline(
                prompt,
                negative_prompt,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                seed=seed,
                callback_on_step_end=on_step if stderr.is_terminal else None,
            )
        drawn = time.monotonic()
    _save(result.images[0], output, prompt, result.seed)
    stderr.print(
        f"{pipeline.target}: seed {result.seed}, {count} steps; loaded in {loaded - started:.2f} s, "
        f"drawn in {drawn - loaded:.2f} s",
        soft_wrap=True,
    )
    stdout.print(str(output), soft_wrap=True, markup=False)


def _check_output(output: Path) -> None:
    """Refuse before the work what could not be written after it."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if output.suffix.lower() not in endings:
        raise ArgumentError(
            "--output",
            expected="a picture file such as koala.png",
            found=str(output),
            mend="end the name in .png, .jpg or .webp",
        )
    if not output.parent.is_dir():
        raise ArgumentError(
            "--output",
            expected="a file in a folder that exists",
            found=str(output),
            mend=f"make the folder {output.parent} first",
        )


def _save(image: Any, output: Path, prompt: str, seed: int | None) -> None:
    from koala_runtime.contract.files import write_atomic

    write_atomic(output, _encoded(image, output, prompt, seed))


def _encoded(image: Any, output: Path, prompt: str, seed: int | None) -> bytes:
    """The picture file's bytes; a PNG also says how it was made."""
    from io import BytesIO

    from PIL import Image, PngImagePlugin

    options: dict[str, Any] = {}
    if output.suffix.lower() == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("prompt", prompt)
        text.add_text("seed", str(seed))
        options["pnginfo"] = text
    stream = BytesIO()
    image.save(stream, Image.registered_extensions()[output.suffix.lower()], **options)
    return stream.getvalue()
