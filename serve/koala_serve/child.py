"""The process that draws: a pipeline, and a thread that writes the files of one batch while the next is drawn."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from koala_bundle.codec import to_json
from koala_bundle.errors import ArgumentError, DeviceError, KoalaError
from koala_serve.encoding import encode
from koala_serve.worker import Batch, Event, Finished, Free, Refused, Row, Stepped

if TYPE_CHECKING:
    from koala_runtime import Pipeline, PipelineOutput

PREVIEW_QUALITY = 80  # of JPEG
READY = "ready"


@dataclass(frozen=True)
class Opening:
    """How a process opens its pipeline: ``options`` are those of ``Pipeline``."""

    bundle: Path
    options: Mapping[str, Any]


def work(connection: Connection, opening: Opening) -> None:
    """Open a pipeline and draw what comes through ``connection`` until it closes."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the server decides when to stop
    from koala_runtime import Pipeline

    try:
        pipeline = Pipeline(opening.bundle, **opening.options)
        with suppress(ArgumentError):  # a sampler that takes more steps
            pipeline("", num_inference_steps=1)  # what is slow once is done before clients come
    except KoalaError as error:
        connection.send(error)
        return
    connection.send(READY)
    with pipeline, ThreadPoolExecutor(1) as files:
        drawer = Drawer(pipeline, connection, files)
        while drawer.draw_next():
            pass


class Drawer:
    """Draws batches in turn."""

    def __init__(self, pipeline: Pipeline, connection: Connection, files: ThreadPoolExecutor) -> None:
        self._pipeline, self._connection, self._files = pipeline, connection, files
        self._waiting: deque[Batch] = deque()
        self._cancelled: set[int] = set()

    def draw_next(self) -> bool:
        """Draw the next batch; False when the server has gone."""
        try:
            while not self._waiting:
                self._receive()
        except EOFError:
            return False
        self._draw(self._waiting.popleft())
        return True

    def _receive(self) -> None:
        message = self._connection.recv()
        if isinstance(message, Batch):
            self._waiting.append(message)
        else:
            self._cancelled.add(message)

    def _is_cancelled(self, batch: Batch) -> bool:
        try:
            while self._connection.poll():
                self._receive()
        except (EOFError, OSError):  # nobody is left to draw for
            os._exit(0)
        return batch.number in self._cancelled

    def _draw(self, batch: Batch) -> None:
        started = time.monotonic()
        send = partial(self._send, batch.number)
        try:
            output = draw_batch(self._pipeline, batch, send, partial(self._is_cancelled, batch))
        except DeviceError:
            # A GPU's error may stay with the process, so another one draws again.
            os._exit(1)
        except KoalaError as error:
            for row in range(len(batch.rows)):
                send(Refused(row, error))
            output = None
        self._cancelled.discard(batch.number)
        send(Free(time.monotonic() - started))
        if output is not None:
            self._files.submit(self._write, batch, output)

    def _write(self, batch: Batch, output: PipelineOutput) -> None:
        for index, row in enumerate(batch.rows):
            self._send(batch.number, write_row(index, row, output))

    def _send(self, number: int, event: Event) -> None:
        try:
            self._connection.send((number, event))
        except OSError:
            os._exit(0)


def draw_batch(pipeline: Pipeline, batch: Batch, send: Any, is_cancelled: Any) -> PipelineOutput | None:
    """Draw a batch in one piece, or step by step if somebody watches or steps take long; None if it was cancelled."""
    arguments = call_arguments(batch.rows, batch.shared)
    if not batch.watched and pipeline.target.has_device:
        return pipeline(**arguments)
    with pipeline.steps(**arguments) as steps:
        for step in steps:
            if is_cancelled():
                return None
            if not batch.watched:
                continue
            wanted = [row for row, each in enumerate(batch.rows) if step.index in each.previews]
            shown = step.preview() if wanted else step.latents  # either waits for the step
            send(Stepped(step.index, step.count, {row: _preview(shown[row]) for row in wanted}))
        return steps.output


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
        return ImageOps.exif_transpose(Image.open(BytesIO(file or b"")))
    except Exception as error:  # each format's own
        raise ArgumentError(
            "image", expected="a picture", found=f"a file that Pillow cannot read ({error})", fix="send a PNG or JPEG"
        ) from None


def write_row(index: int, row: Row, output: PipelineOutput) -> Event:
    """Return a picture of a batch as a file."""
    started = time.monotonic()
    try:
        # Its place in this batch is chance, and makes no difference to its pixels.
        recipe = replace(output.recipes[index], index=0, count=1)
        file = encode(output.images[index], recipe, row.format, row.compression)
    except KoalaError as error:
        return Refused(index, error)
    written = json.dumps(to_json(recipe), ensure_ascii=False)
    return Finished(index, file, written, recipe.parameters, time.monotonic() - started)


def _preview(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=PREVIEW_QUALITY)
    return stream.getvalue()
