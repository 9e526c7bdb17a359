"""Requests to the server, as JSON and as forms: whatever comes, an answer in the client's protocol, and no traceback.

The application runs in this process, and is asked through ASGI. Its worker refuses every picture at once, so that what
is accepted costs no drawing.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import itertools
import json
import random
from collections.abc import AsyncGenerator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from koala_bundle.errors import ArgumentError
from koala_serve.app import create_app
from koala_serve.settings import Settings
from koala_serve.worker import Batch, Event, Free, Refused
from tests.fuzz.mutate import NAMES, NUMBERS, any_value, change_bytes, change_json, dump
from tests.support import bundles

_BOUNDARY = b"frontier"


class _Refuser:
    """A worker that draws nothing."""

    async def open(self) -> None:
        """Nothing to do."""

    async def draw(self, batch: Batch) -> AsyncGenerator[Event]:
        yield Free(0.0)
        for row in range(len(batch.rows)):
            yield Refused(row, ArgumentError("prompt", expected="nothing", found="a prompt", fix="ask another"))

    def cancel(self, number: int) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""


class Bodies:
    """One changed request to a route that takes a body."""

    def __init__(self, folder: Path) -> None:
        bundle = bundles.bundle("koala-tiny", batch=2, encoder=True)
        settings = Settings(body=2**20, pixels=10**6, deadline=5.0)
        self._loop = asyncio.new_event_loop()
        self._app = create_app({"tiny": bundle}, lambda name, path: [_Refuser()], settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        picture = BytesIO()
        Image.new("RGBA", (64, 64), (9, 200, 80, 128)).save(picture, "PNG")
        self._picture = picture.getvalue()
        encoded = base64.b64encode(self._picture).decode()
        shared = {"prompt": "a red circle", "negative_prompt": "blur", "seed": 1, "n": 1, "num_inference_steps": 2}
        openai = {
            **shared,
            "model": "tiny",
            "size": "128x128",
            "guidance_scale": 2.0,
            "scheduler": "euler",
            "user": "me",
        }
        a1111 = {"prompt": "a (red:1.2) circle", "seed": -1, "steps": 2, "cfg_scale": 2, "sampler_name": "Euler a"}
        a1111 |= {"width": 128, "height": 128, "batch_size": 1, "scheduler": "Automatic", "override_settings": {}}
        self._json: list[tuple[str, dict[str, Any]]] = [
            ("/v1/images/generations", {**openai, "output_format": "webp", "output_compression": 80}),
            ("/v1/images/generations", {**openai, "stream": True, "partial_images": 2}),
            ("/v1/jobs", {**openai, "image": encoded, "mask": f"data:image/png;base64,{encoded}", "strength": 0.5}),
            ("/sdapi/v1/txt2img", {**a1111, "alwayson_scripts": {}, "styles": []}),
            ("/sdapi/v1/img2img", {**a1111, "init_images": [encoded], "mask": encoded, "denoising_strength": 0.4}),
            ("/sdapi/v1/options", {"sd_model_checkpoint": "tiny", "show_progress_every_n_steps": 1}),
        ]

    def try_seed(self, seed: int) -> str:
        draw = random.Random(seed)
        if draw.random() < 0.7:
            path, body = draw.choice(self._json)
            data, kind = dump(change_json(copy.deepcopy(body), draw), draw), b"application/json"
        else:
            path, data = "/v1/images/edits", self._form(draw)
            kind = b"multipart/form-data; boundary=" + _BOUNDARY
        if draw.random() < 0.03:
            kind = draw.choice(
                (b"", b"text/plain", b"multipart/form-data", b"application/x-www-form-urlencoded", b"\xff")
            )
        status, answer = self._loop.run_until_complete(asyncio.wait_for(self._ask(path, kind, data, draw), 8))
        assert b"Traceback" not in answer and b'File "' not in answer, answer[:300]
        assert status in (200, 202, 400, 404, 413, 415, 422, 429), f"{status} {path} {answer[:200]!r}"
        if status >= 400:
            told = json.loads(answer)
            assert told["error"], answer[:200]
        return "accepted" if status < 300 else "refused"

    def _form(self, draw: random.Random) -> bytes:
        """Return a form whose fields, files, names and frame are changed."""
        fields: list[tuple[Any, Any]] = [("prompt", "a red circle"), ("seed", "1"), ("n", "1"), ("steps", "2")]
        files = [("image", change_bytes(self._picture, draw) if draw.random() < 0.5 else self._picture)]
        files += [("mask", self._picture)] * draw.choice((0, 1, 1, 3))
        for _ in range(draw.choice((0, 1, 2))):
            value = draw.choice((draw.choice(NAMES), str(draw.choice(NUMBERS)), str(any_value(draw))[:5000]))
            fields.append((draw.choice((*NAMES, "scheduler", "strength", "size", "output_format")), value))
        parts = [_part(name, value) for name, value in fields] + [_part(name, value, name) for name, value in files]
        draw.shuffle(parts)
        if draw.random() < 0.1:
            parts *= draw.choice((2, 50))
        form = b"".join(b"--" + _BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + _BOUNDARY + b"--\r\n"
        return change_bytes(form, draw) if draw.random() < 0.4 else form

    async def _ask(self, path: str, kind: bytes, body: bytes, draw: random.Random) -> tuple[int, bytes]:
        """Send a request in pieces, and stay until the answer is whole."""
        cuts = sorted(draw.randrange(len(body) + 1) for _ in range(draw.choice((0, 1, 3))))
        edges = [0, *cuts, len(body)]
        pieces = [body[start:end] for start, end in itertools.pairwise(edges)]
        headers = [(b"host", b"localhost"), (b"content-type", kind)]
        if draw.random() < 0.5:
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("localhost", 80)}
        scope |= {"client": ("localhost", 1), "asgi": {"version": "3.0", "spec_version": "2.3"}, "root_path": ""}
        status, answer = 0, bytearray()

        async def receive() -> dict[str, Any]:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            await asyncio.Event().wait()  # a client that waits
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            answer.extend(message.get("body", b""))

        await self._app(scope, receive, send)  # type: ignore[arg-type]
        return status, bytes(answer)


def _part(name: str, value: str | bytes, file: str | None = None) -> bytes:
    """Return one part of a form."""
    quoted = name.replace('"', "%22").encode("utf-8", "surrogatepass")
    head = b'Content-Disposition: form-data; name="' + quoted + b'"'
    if file is not None:
        head += b'; filename="' + file.encode() + b'.png"\r\nContent-Type: image/png'
    return head + b"\r\n\r\n" + (value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
