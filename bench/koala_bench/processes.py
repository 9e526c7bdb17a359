"""The processes of the backends: start, command, stop. A crash of one does not affect the others."""

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

from koala_bench.backends.base import Workload
from koala_bench.backends.registry import find_backend
from koala_bench.hardware import gpu_bytes_in_use
from koala_bundle.progress import Report
from koala_verify.pixels import Pixels


class _CrashError(Exception):
    """A backend's process has ended; the text has its exit code and the last line of its stderr."""


class _Process:
    """The process of one backend, run by the interpreter ``python``. ``gpu``: UUID of the only GPU that it sees."""

    def __init__(self, name: str, workload: Workload, python: str, gpu: str | None, *words: str) -> None:
        command = [python, "-m", "koala_bench.worker", name, json.dumps(asdict(workload)), *words]
        self._gpu, self._started = gpu, time.perf_counter()
        pipe = subprocess.PIPE
        # Installed packages come with bytecode; without this, an editable install would be compiled at every start.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", env=environment
        )
        # A thread reads stderr, or the process would block when the pipe is full. The last lines explain a crash.
        self._stderr_tail: deque[str] = deque(maxlen=20)
        self._reader = Thread(target=self._stderr_tail.extend, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def wait_until_prepared(self) -> None:
        """Wait for a process that was started with ``prepare`` to finish."""
        self._receive()
        self._wait()

    def first_pictures(self) -> tuple[Pixels, float]:
        """Return the first pictures and the seconds since the process was started."""
        answer = self._receive()
        seconds = time.perf_counter() - self._started
        return np.frombuffer(bytes.fromhex(answer["pictures"]), np.uint8).reshape(answer["shape"]), seconds

    def draw(self) -> float:
        """Return the seconds of one more run."""
        self._send("draw")
        return float(self._receive()["seconds"])

    def finish(self) -> dict[str, Any]:
        """Return the backend's own measurements and end the process.

        ``device_bytes`` is the GPU memory that its end frees; None without a GPU.
        """
        self._send("finish")
        answer = self._receive()
        before = gpu_bytes_in_use(self._gpu)
        self._send("end")
        self._wait()
        after = gpu_bytes_in_use(self._gpu)
        return {**answer, "device_bytes": None if before is None or after is None else max(0, before - after)}

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._wait()

    def _wait(self) -> int:
        """Wait for the process to end, close its pipes and return its exit code."""
        code = self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            with suppress(OSError):  # unread data in the pipe
                stream.close()
        return code

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has ended, which _receive reports
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        """Return the next answer. Raises _CrashError if the process ends instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._wait()
            last = next((line.strip() for line in reversed(self._stderr_tail) if line.strip()), "nothing on stderr")
            raise _CrashError(f"its process ended with code {code}: {last}")
        return dict(json.loads(line))


class BackendProcesses:
    """The processes of all backends, and what they have measured so far, by the backend's name.

    ``cold`` and ``warm`` are seconds of starts and runs, ``pictures`` are the first of each, ``finished`` has the
    answers to ``finish``, and ``crashed`` says why a backend has crashed. ``gpu`` is the UUID of the GPU that they use.
    """

    def __init__(self, workload: Workload, pythons: Mapping[str, str], report: Report, gpu: str | None) -> None:
        self._workload, self._pythons, self.report, self.gpu = workload, pythons, report, gpu
        self._running: dict[str, _Process] = {}
        self.pictures: dict[str, Pixels] = {}
        self.cold: dict[str, list[float]] = {}
        self.warm: dict[str, list[float]] = {}
        self.finished: dict[str, dict[str, Any]] = {}
        self.crashed: dict[str, str] = {}

    def start(self, name: str) -> None:
        """Start a backend and wait for its first pictures; before its first start, prepare it."""
        python = self._pythons.get(name)
        if name not in self.cold and (python or hasattr(find_backend(name), "prepare")):
            self.report(f"{name}: preparing")
            with self._open(name, "prepare") as process:
                process.wait_until_prepared()
                del self._running[name]
        if name in self.crashed:
            return
        self.report(f"{name}: starting")
        with self._open(name) as process:
            self.pictures[name], seconds = process.first_pictures()
            self.cold.setdefault(name, []).append(seconds)

    def draw(self, names: Sequence[str], rounds: int) -> None:
        """Draw with each backend in turn: one warm-up round, then ``rounds`` that are timed."""
        for turn in range(rounds + 1):
            for name in names:
                if name in self._running:
                    self.report(f"round {turn} of {rounds}: {name}")
                    with self._record_crash(name):
                        seconds = self._running[name].draw()
                        if turn:
                            self.warm.setdefault(name, []).append(seconds)

    def finish(self, names: Sequence[str]) -> None:
        """End these backends and keep their measurements."""
        for name in names:
            if name in self._running:
                self.report(f"{name}: timing phases")
                with self._record_crash(name):
                    self.finished[name] = self._running[name].finish()
                    del self._running[name]

    def gpu_bytes(self, names: Sequence[str]) -> int:
        """Start and end one backend after the other; return how much GPU memory they take together."""
        for name in names:
            self.start(name)
            self.finish([name])
        answers = [self.finished.pop(name) for name in names if name in self.finished]
        return sum(answer["device_bytes"] or 0 for answer in answers)

    def kill(self) -> None:
        """End all processes that are still running."""
        while self._running:
            self._running.popitem()[1].kill()

    @contextmanager
    def _open(self, name: str, *words: str) -> Iterator[_Process]:
        python = self._pythons.get(name, sys.executable)
        self._running[name] = _Process(name, self._workload, python, self.gpu, *words)
        with self._record_crash(name):
            yield self._running[name]

    @contextmanager
    def _record_crash(self, name: str) -> Iterator[None]:
        try:
            yield
        except _CrashError as error:
            self.crashed[name] = str(error)
            self._running.pop(name)
