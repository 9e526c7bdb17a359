"""A process per GPU, fed from one queue: ``python worker_pool.py BUNDLE [GPU...] < prompts.txt`` writes 0.png, ..."""

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from koala_runtime import DeviceError, Pipeline, to_png

ATTEMPTS = 3  # of a picture whose process dies


_options: dict[str, Any] = {}


def start(bundle: str, devices: Any) -> None:
    """Begin a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _options.update(bundle=bundle, device=devices.get())


@cache
def open_pipeline() -> Pipeline:
    """Return the pipeline of this process; it opens with the first picture, and stays open."""
    return Pipeline(**_options)


def draw(prompt: str, seed: int) -> bytes:
    """Return a PNG file; runs in a process of the pool. Raises KoalaError, which reaches the parent."""
    try:
        result = open_pipeline()(prompt, seed=seed)
    except DeviceError:
        open_pipeline.cache_clear()  # the next picture opens it again
        raise
    return to_png(result.images[0], result.recipes[0])


def draw_all(
    bundle: str, prompts: Sequence[str], gpus: Sequence[str | None]
) -> Iterator[tuple[int, bytes | BaseException]]:
    """Yield the number of each prompt with its picture, or with what is wrong with it, as soon as it is there."""
    context, left = get_context("spawn"), dict(enumerate(prompts))  # a forked child cannot use a pipeline
    for attempt in range(1, ATTEMPTS + 1):
        devices = context.SimpleQueue()
        for gpu in gpus:
            devices.put(gpu)
        pool = ProcessPoolExecutor(len(gpus), context, start, (bundle, devices))
        try:
            futures = {pool.submit(draw, prompt, seed): seed for seed, prompt in left.items()}
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, BrokenProcessPool) and attempt < ATTEMPTS:
                    continue  # a process died, which ends the others: new ones draw what is left
                del left[futures[future]]
                yield futures[future], error or future.result()
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    lines = sys.stdin.read().splitlines()
    for number, picture in draw_all(sys.argv[1], lines, sys.argv[2:] or [None]):
        if isinstance(picture, bytes):
            Path(f"{number}.png").write_bytes(picture)
        else:
            print(f"{number}: {picture!r}", file=sys.stderr)
