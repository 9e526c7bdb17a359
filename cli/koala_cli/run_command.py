"""``koala run``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from koala_bundle.errors import ArgumentError
from koala_cli.build_commands import BundlePath
from koala_cli.screen import progress_bar, stderr, stdout


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
    low_memory: Annotated[bool, typer.Option(help="Keep on the GPU only what the phase needs; slower.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show memory and the time of each part.")] = False,
) -> None:
    """Draw a picture. Needs engines in the bundle (koala engines)."""
    _check_output(output)
    from koala_runtime import Pipeline

    started = time.monotonic()
    with progress_bar() as update, _messages_to(update), Pipeline(bundle, target, low_memory=low_memory) as pipeline:
        loaded = time.monotonic()
        count = steps or pipeline.manifest.sampling.num_inference_steps

        def on_step(_: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            update(f"step {step + 1} of {count}", min((step + 1) / count, 1.0))
            return {}

        # On a GPU a picture is one launch, which no callback is to take apart.
        watched = stderr.is_terminal and not verbose and not pipeline.target.has_device
        result = pipeline(
            prompt,
            negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            callback_on_step_end=on_step if watched else None,
            timings=verbose,
        )
        drawn = time.monotonic()
    if verbose:
        from koala_cli.work import memory_table, timings_table

        if pipeline.target.has_device:
            stderr.print(memory_table(pipeline.target.name, pipeline.budget))
        stderr.print(timings_table(result.timings or {}))
    _save(result.images[0], output, prompt, result.seed)
    stderr.print(
        f"{pipeline.target}: seed {result.seed}, {count} steps; loaded in {loaded - started:.2f} s, "
        f"drawn in {drawn - loaded:.2f} s",
        soft_wrap=True,
    )
    stdout.print(str(output), soft_wrap=True, markup=False)


@contextmanager
def _messages_to(update: Callable[[str, float], None]) -> Iterator[None]:
    """Show what the runtime says of long work (compiling kernels) in the progress line."""

    class Line(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:
                update(record.getMessage(), 0.0)

    logger, line = logging.getLogger("koala_runtime"), Line()
    before = logger.level
    logger.addHandler(line)
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    update("loading", 0.0)
    try:
        yield
    finally:
        logger.removeHandler(line)
        logger.setLevel(before)


def _check_output(output: Path) -> None:
    """Refuse before the work what could not be written after it."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if output.suffix.lower() not in endings:
        raise ArgumentError(
            "--output",
            expected="a picture file such as koala.png",
            found=str(output),
            fix="end the name in .png, .jpg or .webp",
        )
    if not output.parent.is_dir():
        raise ArgumentError(
            "--output",
            expected="a file in a folder that exists",
            found=str(output),
            fix=f"make the folder {output.parent} first",
        )


def _save(image: Any, output: Path, prompt: str, seed: int | None) -> None:
    from koala_bundle.files import write_atomic

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
