"""A real ``koala serve`` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

STARTS_WITHIN = 60.0  # seconds


@dataclass
class Served:
    """A server that runs. ``log`` is where its lines go."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        return self._ask(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Send JSON and return the status and what the answer's JSON says."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        status, answer = self._ask(urllib.request.Request(self.url + path, data, headers))
        return status, json.loads(answer)

    def wait_until_ready(self) -> None:
        until = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.get("/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = self.get("/metrics")[1].decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def workers(self) -> list[int]:
        """Return the processes that draw."""
        return [pid for pid in _children(self.process.pid) if b"spawn_main" in _read(f"/proc/{pid}/cmdline")]

    def memory(self) -> float:
        """Return the resident memory of the server and its workers, in megabytes."""
        pids = (self.process.pid, *self.workers())
        found = (re.search(rb"VmRSS:\s+(\d+)", _read(f"/proc/{pid}/status")) for pid in pids)
        return sum(int(each[1]) for each in found if each) / 1e3

    def lines(self) -> list[dict[str, Any]]:
        """Return the log, without the lines that are not JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@contextmanager
def serving(
    *bundles: Path, log: Path, options: tuple[str, ...] = (), env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Serve bundles until the end of the block, then stop the server as a system would and check that it goes."""
    port = free_port()
    command = [sys.executable, "-m", "koala_cli.main", "serve", *map(str, bundles), "--port", str(port), *options]
    with log.open("wb") as output:
        served = Served(_start(command, output, env), port, log)
        try:
            served.wait_until_ready()
            yield served
            if served.process.poll() is None:
                served.process.send_signal(signal.SIGTERM)
                assert served.process.wait(90) == 0
        finally:
            if served.process.poll() is None:
                served.process.kill()
                served.process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str], output: IO[bytes], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})


def _children(pid: int) -> list[int]:
    threads = [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
