"""Draws a batch with a pipeline and tells what happens: the same in a process of this machine and in a replica."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from koala_bundle.codec import to_json
from koala_bundle.errors import ArgumentError, DeviceError, KoalaError
from koala_runtime.pictures import FORMATS
from koala_serve.encoding import Finish, encode
from koala_serve.errors import FaultError
from koala_serve.worker import Batch, Event, Finished, Free, Refused, Row, Stepped

if TYPE_CHECKING:
    from koala_runtime import Pipeline, PipelineOutput, Recipe

PREVIEW_QUALITY = 80  # of JPEG
Send: TypeAlias = Callable[[Event], None]
_log = logging.getLogger(__name__)


def warm_up(pipeline: Pipeline) -> None:
    """Draw once, so that what is slow the first time is done before clients come."""
    try:
        pipeline("", num_inference_steps=1)
    except ArgumentError:  # a sampler that takes more steps
        pipeline("")


class Drawer:
    """Draws batches with a pipeline; a thread of its own writes the files of one while the next is drawn."""

    def __init__(self, pipeline: Pipeline, finish: Finish | None = None) -> None:
        self._pipeline, self._finish = pipeline, finish or Finish()
        self._files = ThreadPoolExecutor(1, "files")

    def close(self) -> None:
        """Write what is left to write."""
        self._files.shutdown()

    def draw(self, batch: Batch, send: Send, is_cancelled: Callable[[], bool]) -> None:
        """Draw a batch and return when the next may come.

        Sends ``Free``, and of each row ``Finished`` or ``Refused`` in the thread that writes files, or nothing of them
        if the batch was cancelled. Raises DeviceError.
        """
        started = time.monotonic()
        self._draw(batch, range(len(batch.rows)), send, is_cancelled)
        send(Free(time.monotonic() - started))

    def _draw(self, batch: Batch, places: Sequence[int], send: Send, is_cancelled: Callable[[], bool]) -> None:
        """Draw some rows of a batch together; if they are refused, each alone, because one may be at fault."""
        try:
            output = self._output(batch, places, send, is_cancelled)
        except DeviceError:
            raise
        except KoalaError as error:
            if len(places) == 1:
                self._files.submit(send, Refused(places[0], error))
            else:
                for place in places:
                    self._draw(batch, [place], send, is_cancelled)
            return
        if output is not None:
            for index, place in enumerate(places):
                self._files.submit(self._write, place, batch.rows[place], output, index, send)

    def _output(
        self, batch: Batch, places: Sequence[int], send: Send, is_cancelled: Callable[[], bool]
    ) -> PipelineOutput | None:
        """Draw in one piece, or step by step if somebody watches or steps take long; None if it was cancelled."""
        arguments = call_arguments([batch.rows[place] for place in places], batch.shared) | self._finish.arguments
        if not batch.watched and self._pipeline.target.has_device:
            return self._pipeline(**arguments)
        with self._pipeline.steps(**arguments) as steps:
            for step in steps:
                if is_cancelled():
                    return None
                if not batch.watched:
                    continue
                wanted = {place: row for row, place in enumerate(places) if step.index in batch.rows[place].previews}
                shown = step.preview() if wanted else step.latents  # either waits for the step
                send(Stepped(step.index, step.count, {place: _preview(shown[row]) for place, row in wanted.items()}))
            return steps.output

    def _write(self, place: int, row: Row, output: PipelineOutput, index: int, send: Send) -> None:
        send(write_row(place, row, output.images[index], output.recipes[index], self._finish))


def call_arguments(rows: Sequence[Row], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the pipeline call that draws ``rows``, each with noise of its own."""
    arguments = {"prompt": [row.prompt for row in rows], "seed": [row.seed for row in rows], **shared}
    if rows[0].negative_prompt is not None:
        arguments["negative_prompt"] = [row.negative_prompt for row in rows]
    if rows[0].image is not None:
        arguments["image"] = [open_image(row.image) for row in rows]
    if rows[0].mask is not None:
        arguments["mask_image"] = [open_image(row.mask) for row in rows]
    return arguments


def open_image(file: bytes | None) -> Image.Image:
    """Return the picture in a file, the right way up. Raises ArgumentError for a file that is none."""
    try:
        return ImageOps.exif_transpose(Image.open(BytesIO(file or b""), formats=FORMATS))
    except Exception as error:  # each format's own
        raise ArgumentError(
            "image", expected="a picture", found=f"a file that Pillow cannot read ({error})", fix="send a PNG or JPEG"
        ) from None


def write_row(place: int, row: Row, image: Any, recipe: Recipe, finish: Finish) -> Event:
    """Return a picture as a file."""
    started = time.monotonic()
    try:
        # Its place in this batch is chance, and makes no difference to its pixels.
        recipe = replace(recipe, index=0, count=1)
        file = encode(image, recipe, row.format, row.compression, finish.mark)
    except KoalaError as error:
        return Refused(place, error)
    except Exception as error:
        _log.exception("a picture's file could not be written")
        fault = FaultError("the picture", expected="a file", found=type(error).__name__, fix="the log says more")
        return Refused(place, fault)
    written = json.dumps(to_json(recipe), ensure_ascii=False)
    return Finished(place, file, written, recipe.parameters, time.monotonic() - started)


def _preview(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=PREVIEW_QUALITY)
    return stream.getvalue()
