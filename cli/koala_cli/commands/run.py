"""``koala run``: a prompt, or the recipe in a picture, to a picture."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import open_manifest
from koala_cli.files import check_output_file, read_mark, write_output
from koala_cli.options import Bundle, Device, RunTarget, SignedBy, argument, option
from koala_cli.screen import note, progress_bar, say, stderr

if TYPE_CHECKING:
    from koala_runtime import Pipeline, PipelineOutput, Recipe


def run(
    bundle: Bundle,
    prompt: Annotated[str | None, argument("PROMPT", "What to draw.")] = None,
    negative_prompt: Annotated[str | None, option("What to avoid; needs guidance above 1.")] = None,
    weighted: Annotated[
        bool, option("Read (word:1.3), (word) and [word] in the prompts as weights.", "--weighted")
    ] = False,
    steps: Annotated[int | None, option("Denoising steps. Default: the bundle's own.")] = None,
    scheduler: Annotated[
        str | None, option("Sampler, such as dpmpp_2m_karras, unipc or euler_a. Default: the checkpoint's own.")
    ] = None,
    eta: Annotated[float | None, option("Share of noise that ddim and tcd add, 0 to 1. Default: 0.")] = None,
    guidance_scale: Annotated[float | None, option("1 or less: none. Default: the bundle's own.")] = None,
    image: Annotated[
        Path | None,
        option("Begin with this picture; needs a bundle built with --encoder.", "--image", metavar="<file>"),
    ] = None,
    mask: Annotated[Path | None, option("Paint only where this picture is white.", "--mask", metavar="<file>")] = None,
    strength: Annotated[
        float | None, option("How much of --image is painted anew, 0 to 1. Default: 0.3, with --mask 0.9999.")
    ] = None,
    seed: Annotated[int | None, option("Same seed, same picture. Default: random.")] = None,
    like: Annotated[
        Path | None,
        option("Draw this PNG picture of koala run again; options given beside it make a variation.", metavar="<png>"),
    ] = None,
    mark: Annotated[bool, option("Mark the picture as made by a model: a watermark, and XMP.", "--mark")] = False,
    certificate: Annotated[
        Path | None,
        option("Sign it, too: the certificates, PEM; needs --mark, --key.", "--certificate", metavar="<pem>"),
    ] = None,
    key: Annotated[Path | None, option("The private key of --certificate.", "--key", metavar="<pem>")] = None,
    output: Annotated[Path, option("The picture file; its ending chooses the format. Default: koala.png.")] = Path(
        "koala.png"
    ),
    target: RunTarget = None,
    device: Device = None,
    low_memory: Annotated[
        bool, option("Keep on the GPU only what a phase needs; this is slower.", "--low-memory")
    ] = False,
    verify: Annotated[
        bool, option("Check the digest of every file again, not only of changed ones.", "--verify")
    ] = False,
    signed_by: SignedBy = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show memory and the time of each part.", show_default=False)
    ] = False,
) -> None:
    """Draw a picture.

    From PROMPT, or with --like from the recipe that every PNG picture of koala run carries. Needs a bundle with
    engines (koala build).
    """
    _check_output(output)
    arguments = {
        "negative_prompt": negative_prompt,
        "weighted": weighted or None,
        "num_inference_steps": steps,
        "scheduler": scheduler,
        "eta": eta,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "mark": mark or None,
    }
    pictures = {"image": _open("image", image), "mask_image": _open("mask", mask), "strength": strength}
    _check_alone(pictures, like)
    changes = {name: value for name, value in arguments.items() if value is not None}
    _check_prompt(prompt, like)
    recipe = None if like is None else _read_repeatable(like, bundle, changes, output)
    marking = read_mark(mark or (recipe is not None and recipe.mark), certificate, key, _format(output), "output")
    from koala_runtime import Pipeline, encode_picture
    from koala_runtime.repeat import repeat_call, repeated_picture

    started = time.monotonic()
    how: dict[str, Any] = {"low_memory": low_memory, "device": device, "verify": verify, "key": signed_by}
    with progress_bar() as update, _messages_to(update), Pipeline(bundle, target, **how) as pipeline:
        loaded = time.monotonic()
        call = {"prompt": prompt, **arguments, **pictures}
        if recipe is not None:
            call = repeat_call(recipe, pipeline.manifest)
        if stderr.is_terminal and not verbose:
            result = _draw_stepwise(pipeline, call, update)
        else:
            result = pipeline(**call, timings=verbose)
        drawn = time.monotonic()
    if recipe is None:
        drawn_image, made = result.images[0], result.recipes[0]
    else:
        drawn_image, made = repeated_picture(recipe, pipeline.manifest, result)
    write_output(output, encode_picture(drawn_image, made, _format(output), marking))
    if verbose:
        _print_costs(pipeline, result)
    note(
        f"{pipeline.target}: seed {made.seed}, {made.num_inference_steps} steps; loaded in {loaded - started:.2f} s, "
        f"drawn in {drawn - loaded:.2f} s"
    )
    if recipe is not None:
        _note_differences(recipe, made)
    say(str(output))


def _check_prompt(prompt: str | None, like: Path | None) -> None:
    if prompt is None and like is None:
        raise ArgumentError("prompt", expected="what to draw", found="none", fix="pass a prompt, or --like PICTURE")
    if prompt is not None and like is not None:
        raise ArgumentError(
            "prompt",
            expected="none beside --like, whose picture has its own",
            found=repr(prompt),
            fix="leave one of them out",
        )


def _check_alone(pictures: dict[str, Any], like: Path | None) -> None:
    given = [name for name, value in pictures.items() if value is not None]
    if like is not None and given:
        raise ArgumentError(
            "mask" if given[0] == "mask_image" else given[0],
            expected="none beside --like, which draws from noise",
            found=f"--like {like}",
            fix="leave one of them out",
        )


def _open(option: str, path: Path | None) -> Any:
    """Return a picture the right way up, None for none."""
    from PIL import ImageOps

    from koala_runtime.pictures import open_picture

    if path is None:
        return None
    picture = open_picture(path, f"--{option} {path}", "pass a picture")
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged metadata does not say which way is up
        return picture


def _read_repeatable(like: Path, bundle: Path, changes: dict[str, Any], output: Path) -> Recipe:
    """Return the recipe in a picture with what is to be changed; refuses what cannot be drawn before engines load."""
    from koala_runtime.recipe import read_recipe
    from koala_runtime.repeat import check_repeatable
    from koala_runtime.samplers import choose, make_scheduler

    manifest, digest = open_manifest(bundle)  # refuses what is no bundle
    if "scheduler" in changes:
        scheduler = choose(changes["scheduler"], make_scheduler(manifest.spec.scheduler))
        changes = {**changes, "scheduler": scheduler.spec.own}
    recipe = replace(read_recipe(like), **changes)
    if "seed" in changes:  # a picture of its own
        recipe = replace(recipe, index=0, count=1)
    if "num_inference_steps" in changes:
        recipe = replace(recipe, timesteps=(), sigmas=())
    check_repeatable(recipe, digest, like, bundle)
    if changes and output.exists() and output.samefile(like):
        raise ArgumentError(
            "output",
            expected="another file than the picture of --like",
            found=str(output),
            fix="name a new file for the variation",
        )
    return recipe


def _draw_stepwise(pipeline: Pipeline, call: dict[str, Any], update: Callable[[str, float], None]) -> PipelineOutput:
    """Draw with a progress bar that follows the steps."""
    with pipeline.steps(**call) as steps:
        for step in steps:
            update(f"step {step.index + 1} of {step.count}", (step.index + 1) / step.count)
        return steps.output


@contextmanager
def _messages_to(update: Callable[[str, float], None]) -> Iterator[None]:
    """Show what the runtime reports of long work (compiling kernels) in the progress line."""

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


def _print_costs(pipeline: Pipeline, result: PipelineOutput) -> None:
    from koala_cli.work import memory_table, timings_table

    if pipeline.target.has_device:
        stderr.print(memory_table(pipeline.target.name, pipeline.budget))
    stderr.print(timings_table(result.timings or {}))


def _note_differences(recipe: Recipe, made: Recipe) -> None:
    """Say why a picture drawn again may not be the same to the last byte."""
    if made.target != recipe.target:
        note(
            f"the picture was drawn on target {recipe.target} and now on {made.target}: pixels may differ slightly; "
            f"--target {recipe.target} repeats it exactly"
        )
    if made.version != recipe.version:
        note(
            f"the picture was drawn by koala-trt {recipe.version} and now by {made.version}: "
            "its recipe says so, and pixels may differ slightly"
        )


def _check_output(output: Path) -> None:
    """Refuse before the work what could not be written after it."""
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if output.suffix.lower() not in endings or not _takes_pictures(output):
        raise ArgumentError(
            "output",
            expected="a picture file such as koala.png",
            found=str(output),
            fix="end the name in .png, .jpg or .webp",
        )
    check_output_file(output)


def _takes_pictures(output: Path) -> bool:
    """Whether Pillow writes colours in this format here; for some it has only a name, or needs another program."""
    from PIL import Image

    try:
        _encoded_as(Image.new("RGB", (16, 16)), output)
    except Exception:  # each format's own
        return False
    return True


def _format(output: Path) -> str:
    """Return Pillow's name of the format that a file's ending means."""
    from PIL import Image

    return Image.registered_extensions()[output.suffix.lower()]


def _encoded_as(image: Any, output: Path) -> bytes:
    stream = BytesIO()
    image.save(stream, _format(output))
    return stream.getvalue()
