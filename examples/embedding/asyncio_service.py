"""One pipeline for all tasks of an asyncio program: ``python asyncio_service.py BUNDLE PROMPT...`` writes 0.png, ..."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from koala_runtime import DeviceError, Pipeline, to_png

MOST_WAITING = 16


class Painter:
    """Owns a pipeline and the one thread that uses it, so that the event loop never waits for a picture."""

    def __init__(self, bundle: str) -> None:
        self._bundle, self._waiting = bundle, 0
        self._pipe: Pipeline | None = Pipeline(bundle)  # a bundle that cannot be drawn is an error here and now
        self._thread = ThreadPoolExecutor(1)

    async def draw(self, prompt: str, seed: int) -> bytes:
        """Return a PNG file. Raises KoalaError, and QueueFull for a caller that had better come back later.

        Tasks are served in turn. One that is cancelled while it waits is not drawn.
        """
        if self._waiting >= MOST_WAITING:
            raise asyncio.QueueFull
        self._waiting += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(self._draw, prompt, seed))
        finally:
            self._waiting -= 1

    def _draw(self, prompt: str, seed: int) -> bytes:
        self._pipe = self._pipe or Pipeline(self._bundle)
        try:
            result = self._pipe(prompt, seed=seed)
        except DeviceError:
            self._pipe.close()
            self._pipe = None  # the next picture opens it again
            raise
        return to_png(result.images[0], result.recipes[0])

    def close(self) -> None:
        """Free everything after the pictures that wait."""
        self._thread.shutdown()
        if self._pipe:
            self._pipe.close()


async def main(bundle: str, *prompts: str) -> None:
    """Draw all prompts; what is wrong with one of them does not touch the others."""
    painter = Painter(bundle)
    tasks = [painter.draw(prompt, seed) for seed, prompt in enumerate(prompts)]
    for number, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if isinstance(result, bytes):
            Path(f"{number}.png").write_bytes(result)
        else:
            print(f"{number}: {result!r}", file=sys.stderr)
    painter.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
