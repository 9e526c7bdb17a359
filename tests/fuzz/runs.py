"""Runs of many inputs: a worker per kind, started again after a crash or a hang."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.kinds import BUNDLE_VARIABLE
from tests.support import bundles

ROOT = Path(__file__).parents[2]
SECONDS = 10.0
"""For one input; the slowest that is accepted takes half a second on an idle core."""
_START_SECONDS = 300.0  # imports, and a bundle that is not in the cache


@dataclass
class Tally:
    """What came of the inputs of one kind; ``findings`` by seed."""

    ended: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)


def _quiet(seed: int, ended: str) -> None:
    """Show nothing."""


def run_kind(name: str, first: int, count: int, progress: Callable[[int, str], None] = _quiet) -> Tally:
    """Read the inputs of ``count`` seeds from ``first``; the result depends on these alone."""
    os.environ[BUNDLE_VARIABLE] = str(bundles.bundle(bundles.TINY))
    tally, end = Tally(), first + count
    while first < end:
        with tempfile.TemporaryDirectory() as folder:
            first = _run_worker(name, first, end - first, folder, tally, progress)
    return tally


def _run_worker(
    name: str, first: int, count: int, folder: str, tally: Tally, progress: Callable[[int, str], None]
) -> int:
    """Run one worker to its end, or until it crashes or hangs; return the seed to go on with."""
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(first), str(count), folder]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        lines: queue.Queue[str] = queue.Queue()
        errors: list[str] = []
        readers = [
            threading.Thread(target=lambda: [*map(lines.put, process.stdout or ()), lines.put("")], daemon=True),
            threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True),
        ]
        for reader in readers:
            reader.start()
        seed, is_open = None, False
        while True:
            try:
                line = lines.get(timeout=SECONDS if is_open or seed is not None else _START_SECONDS)
            except queue.Empty:
                process.kill()
                line = ""
                ended = f"finding: a hang of {SECONDS:g} s"
            else:
                ended = "finding: a crash"
            if not line:
                break
            seed, *said = json.loads(line)
            is_open = not said
            if said:
                _count(tally, seed, said[0], progress)
        for reader in readers:  # to the end of what they read, before it is closed
            reader.join()
    if seed is None:
        raise RuntimeError(f"{name}: no worker starts: {''.join(errors)[-2000:]}")
    if is_open:
        _count(tally, seed, f"{ended} (exit code {process.returncode})", progress)
    return int(seed) + 1


def _count(tally: Tally, seed: int, ended: str, progress: Callable[[int, str], None]) -> None:
    tally.ended[ended.split(":")[0]] += 1
    if ended.startswith("finding"):
        tally.findings[seed] = ended
    progress(seed, ended)
