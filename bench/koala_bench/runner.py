"""Measures backends side by side: each in a process of its own, one picture each in turn.

Interleaving lets a machine that drifts (heat, neighbours) hurt all alike; a process of its own makes memory and cold
starts honest, and a crash its own affair.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from koala_bench.backends import HOST, REFERENCE, Pixels, Work, available
from koala_bench.machine import describe, install_bytes, roofline
from koala_bench.results import SCHEMA_VERSION, Measured, Results
from koala_bench.verify import psnr
from koala_runtime.contract.errors import ArgumentError
from koala_runtime.contract.manifest import Manifest, read_manifest

Report = Callable[[str], None]


class _CrashError(Exception):
    """A backend that crashed; the text is the end of what it said."""


class _Process:
    """One backend's process."""

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        command = [sys.executable, "-m", "koala_bench.worker", name, json.dumps(asdict(work))]
        self._started = time.perf_counter()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
        )
        # Read on the side, or a library that says much would wait for a reader; the end of it explains a crash.
        self._said: deque[str] = deque(maxlen=20)
        self._reader = Thread(target=self._said.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def first_picture(self) -> tuple[Pixels, float]:
        """Return the first picture and the seconds since the process began."""
        told = self._answer()
        seconds = time.perf_counter() - self._started
        return np.frombuffer(bytes.fromhex(told["picture"]), np.uint8).reshape(told["shape"]), seconds

    def draw(self) -> float:
        """Return the seconds of one more picture."""
        self._tell("draw")
        return float(self._answer()["seconds"])

    def finish(self) -> dict[str, Any]:
        """Return where the time goes and what memory it took; the process ends."""
        self._tell("finish")
        told = self._answer()
        self._end()
        return told

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._end()

    def _end(self) -> int:
        """Wait for the process and close the pipes; returns its exit code."""
        code = self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):  # what was not read any more
                stream.close()
        return code

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone; its answer, which does not come, says so
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._end()
            last = next((line.strip() for line in reversed(self._said) if line.strip()), "no word")
            raise _CrashError(f"its process ended with code {code}: {last}")
        return dict(json.loads(line))


class _SideBySide:
    """All processes at once; one that crashes leaves ``living`` for ``failed``."""

    def __init__(self, work: Work, report: Report) -> None:
        self._work, self._report = work, report
        self.living: dict[str, _Process] = {}
        self.failed: dict[str, str] = {}
        self.pictures: dict[str, Pixels] = {}
        self.cold: dict[str, float] = {}
        self.warm: dict[str, list[float]] = {}

    def start(self, name: str) -> None:
        """Start a backend and have its first picture."""
        self._report(f"{name}: starting")
        self.living[name] = process = _Process(name, self._work)
        with self._crashes(name):
            self.pictures[name], self.cold[name] = process.first_picture()

    def draw(self, turn: int, rounds: int) -> None:
        """Draw one picture with each; those of the first turn are a warm-up."""
        for name, process in [*self.living.items()]:
            self._report(f"picture {turn + 1} of {rounds + 1}: {name}")
            with self._crashes(name):
                seconds = process.draw()
                if turn:
                    self.warm.setdefault(name, []).append(seconds)

    def finish(self) -> dict[str, dict[str, Any]]:
        """End all and return what each told, by name."""
        told = {}
        for name, process in [*self.living.items()]:
            self._report(f"{name}: where the time goes")
            with self._crashes(name):
                told[name] = process.finish()
                del self.living[name]
        return told

    def stop(self, *names: str) -> None:
        """End processes, whatever they do."""
        for name in names:
            if name in self.living:
                self.living.pop(name).stop()

    @contextmanager
    def _crashes(self, name: str) -> Iterator[None]:
        try:
            yield
        except _CrashError as error:
            self.failed[name] = str(error)
            self.living.pop(name)


def run(
    bundle: Path,
    source: str,
    names: Sequence[str] | None,
    prompt: str,
    rounds: int,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    reference: bool = True,
    report: Report = lambda _: None,
) -> Results:
    """Measure ``names``, or everything that can run here; ``rounds`` warm pictures of each, in turn.

    With ``reference`` float32 PyTorch draws the picture once, for the others to be compared with.
    Raises InputError for what the caller can mend. A backend that fails is in the results with the reason.
    """
    manifest = read_manifest(bundle)
    if rounds < 2:
        raise ArgumentError("--rounds", expected="2 or more", found=str(rounds), mend="pass 10 for a first look")
    sampling = manifest.sampling
    work = Work(
        str(bundle),
        source,
        prompt,
        seed,
        sampling.num_inference_steps if steps is None else steps,
        sampling.guidance_scale if guidance_scale is None else guidance_scale,
    )
    problems = available(bundle)
    chosen = [*problems] if names is None else [*names]
    missing = {name: reason for name in chosen if (reason := problems.get(name))}
    report("measuring what the machine can do")
    peak = roofline()
    side = _SideBySide(work, report)
    try:
        if reference:
            side.start(REFERENCE)
            side.stop(REFERENCE)
        for name in chosen:
            if name not in missing:
                side.start(name)
        for turn in range(rounds + 1):
            side.draw(turn, rounds)
        told = side.finish()
    finally:
        side.stop(*list(side.living))
    pictures, cold, warm = side.pictures, side.cold, side.warm
    wanted = pictures.get(REFERENCE)
    measured = [
        Measured(
            name=name,
            cold_seconds=cold[name],
            warm_seconds=tuple(warm[name]),
            parts=_scaled(told[name]["parts"], float(np.median(warm[name]))),
            host_bytes=told[name]["host_bytes"],
            device_bytes=told[name]["device_bytes"],
            install_bytes=install_bytes(told[name]["packages"]),
            psnr=None if wanted is None else psnr(wanted, pictures[name], 255.0),
        )
        for name in told
    ]
    return Results(
        schema_version=SCHEMA_VERSION,
        command=tuple(sys.argv),
        machine=describe(),
        flops=picture_flops(manifest, work.steps),
        peak=peak,
        prompt=prompt,
        seed=seed,
        steps=work.steps,
        guidance_scale=work.guidance_scale,
        profile=manifest.profile,
        measured=tuple(measured),
        missing={**missing, **side.failed},
    )


def picture_flops(manifest: Manifest, steps: int) -> int:
    """Operations of a picture as it was traced, before any pass: the same work for every backend."""
    return sum(counts.flops * (steps if name == "denoiser" else 1) for name, counts in manifest.traced.items())


def _scaled(parts: dict[str, float], median: float) -> dict[str, float]:
    """Scale parts, which were timed with waits between them, to the median picture; the host's share takes the rest."""
    known = {name: seconds for name, seconds in parts.items() if name != HOST}
    factor = min(1.0, median / (sum(known.values()) or 1.0))
    scaled = {name: seconds * factor for name, seconds in known.items()}
    return {**scaled, HOST: median - sum(scaled.values())}
