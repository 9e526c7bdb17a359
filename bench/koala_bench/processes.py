"""The processes of the backends that are measured: start, ask, stop; a crash leaves the others alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from threading import Thread
from typing import Any

import numpy as np

from koala_bench.backends import Work
from koala_bench.hardware import gpu_bytes_in_use
from koala_bench.registry import find
from koala_bundle.progress import Report
from koala_verify.pixels import Pixels


class _CrashError(Exception):
    """A backend that crashed; the text is the end of what it said."""


class _Process:
    """One backend's process, run by the interpreter ``python``."""

    def __init__(self, name: str, work: Work, python: str, *words: str) -> None:
        command = [python, "-m", "koala_bench.worker", name, json.dumps(asdict(work)), *words]
        self._started = time.perf_counter()
        pipe = subprocess.PIPE
        # Installed packages come compiled; told to keep no bytecode, Python would start ours, in a checkout, later.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", env=environment
        )
        # Read on the side, or a library that says much would wait for a reader; the end of it explains a crash.
        self._said: deque[str] = deque(maxlen=20)
        self._reader = Thread(target=self._said.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def prepare(self) -> None:
        """Wait until a process that was started to ``prepare`` has done so."""
        self.answer()
        self.end()

    def first_pictures(self) -> tuple[Pixels, float]:
        """Return the first pictures and the seconds since the process began."""
        told = self.answer()
        seconds = time.perf_counter() - self._started
        return np.frombuffer(bytes.fromhex(told["pictures"]), np.uint8).reshape(told["shape"]), seconds

    def draw(self) -> float:
        """Return the seconds of one more run."""
        self.tell("draw")
        return float(self.answer()["seconds"])

    def finish(self) -> dict[str, Any]:
        """Return what it has to say of itself; the process ends.

        ``device_bytes`` is what the GPU has free after it that it had not before, None where there is no GPU.
        """
        self.tell("finish")
        told = self.answer()
        held = gpu_bytes_in_use()
        self.tell("end")
        self.end()
        left = gpu_bytes_in_use()
        return {**told, "device_bytes": None if held is None or left is None else max(0, held - left)}

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self.end()

    def end(self) -> int:
        """Wait for the process and close the pipes; returns its exit code."""
        code = self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):  # what was not read any more
                stream.close()
        return code

    def tell(self, word: str) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone; its answer, which does not come, says so
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next line that it writes. Raises _CrashError if it ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self.end()
            last = next((line.strip() for line in reversed(self._said) if line.strip()), "no word")
            raise _CrashError(f"its process ended with code {code}: {last}")
        return dict(json.loads(line))


class Processes:
    """All backends; ``failed`` says why one has crashed, ``pictures``, ``cold`` and ``warm`` what they have done."""

    def __init__(self, work: Work, pythons: Mapping[str, str], report: Report) -> None:
        self._work, self._pythons, self._report = work, pythons, report
        self._living: dict[str, _Process] = {}
        self.failed: dict[str, str] = {}
        self.pictures: dict[str, Pixels] = {}
        self.cold: dict[str, list[float]] = {}
        self.warm: dict[str, list[float]] = {}
        self.told: dict[str, dict[str, Any]] = {}

    def start(self, name: str) -> None:
        """Start a backend and have its first pictures; prepare it if it was not started before."""
        python = self._pythons.get(name)
        if name not in self.cold and (python or hasattr(find(name), "prepare")):
            self._report(f"{name}: preparing")
            with self._open(name, "prepare") as process:
                process.prepare()
                del self._living[name]
        if name in self.failed:
            return
        self._report(f"{name}: starting")
        with self._open(name) as process:
            self.pictures[name], seconds = process.first_pictures()
            self.cold.setdefault(name, []).append(seconds)

    def draw(self, names: Sequence[str], rounds: int) -> None:
        """Draw with each in turn, ``rounds`` times after one that is a warm-up."""
        for turn in range(rounds + 1):
            for name in names:
                if name in self._living:
                    self._report(f"round {turn} of {rounds}: {name}")
                    with self._crashes(name):
                        seconds = self._living[name].draw()
                        if turn:
                            self.warm.setdefault(name, []).append(seconds)

    def finish(self, names: Sequence[str]) -> None:
        """End these and keep what they told."""
        for name in names:
            if name in self._living:
                self._report(f"{name}: where the time goes")
                with self._crashes(name):
                    self.told[name] = self._living[name].finish()
                    del self._living[name]

    def stop(self) -> None:
        """End all that are left, whatever they do."""
        while self._living:
            self._living.popitem()[1].stop()

    @contextmanager
    def _open(self, name: str, *words: str) -> Iterator[_Process]:
        python = self._pythons.get(name, sys.executable)
        self._living[name] = _Process(name, self._work, python, *words)
        with self._crashes(name):
            yield self._living[name]

    @contextmanager
    def _crashes(self, name: str) -> Iterator[None]:
        try:
            yield
        except _CrashError as error:
            self.failed[name] = str(error)
            self._living.pop(name)
