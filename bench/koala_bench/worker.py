"""The process of one backend: ``python -m koala_bench.worker NAME WORK``; lines come in, lines go out."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from koala_bench.backends import Work
from koala_bench.registry import find


def main(name: str, work_json: str, *words: str) -> None:
    """Load, draw the first pictures, and then do what each line says: ``draw``, ``finish``. Or only ``prepare``."""
    work, make = Work(**json.loads(work_json)), find(name)
    # What libraries print goes with their warnings; the answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**told: object) -> None:
        answers.write(json.dumps(told) + "\n")

    if "prepare" in words:
        if prepare := getattr(make, "prepare", None):
            prepare(work)
        answer()
        return
    backend = make(work)
    pictures = backend.draw()
    answer(shape=pictures.shape, pictures=pictures.tobytes().hex())
    for line in sys.stdin:
        if line.strip() == "draw":
            started = time.perf_counter()
            backend.draw()
            answer(seconds=time.perf_counter() - started)
        else:
            from koala_bench.hardware import install_bytes, version_of

            host_bytes = _peak()
            backend.parts()  # its hooks and captures, once
            versions = {package: number for package in backend.packages if (number := version_of(package))}
            install = install_bytes(backend.packages)
            answer(parts=backend.parts(), host_bytes=host_bytes, versions=versions, install_bytes=install)
            sys.stdin.readline()  # what it holds stays until somebody has looked
            return


def _peak() -> int:
    """Most memory that this process held, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not getrusage: its maximum also has what the process that started this one held.
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
