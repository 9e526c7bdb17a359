"""The process of one backend: ``python -m koala_bench.worker NAME WORKLOAD [prepare]``.

Commands come in as lines on stdin; answers go out as lines of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from koala_bench.backends.base import Workload
from koala_bench.backends.registry import find_backend


def main(name: str, workload_json: str, *words: str) -> None:
    """Load a backend, draw the first pictures, then obey: ``draw`` once more, or ``finish``. Or only ``prepare``."""
    workload, backend_class = Workload(**json.loads(workload_json)), find_backend(name)
    # Answers get a pipe of their own; whatever libraries print to stdout goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**content: object) -> None:
        answers.write(json.dumps(content) + "\n")

    if "prepare" in words:
        if prepare := getattr(backend_class, "prepare", None):
            prepare(workload)
        answer()
        return
    backend = backend_class(workload)
    pictures = backend.draw()
    answer(shape=pictures.shape, pictures=pictures.tobytes().hex())
    for line in sys.stdin:
        if line.strip() == "draw":
            started = time.perf_counter()
            backend.draw()
            answer(seconds=time.perf_counter() - started)
        else:
            from koala_bench.hardware import install_bytes, version_of

            host_bytes = _peak_memory()
            backend.phase_seconds()  # the first call may still allocate or capture
            versions = {package: number for package in backend.packages if (number := version_of(package))}
            answer(
                phase_seconds=backend.phase_seconds(),
                host_bytes=host_bytes,
                versions=versions,
                install_bytes=install_bytes(backend.packages),
            )
            sys.stdin.readline()  # keep GPU memory allocated until the parent has measured it
            return


def _peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # Not getrusage: its maximum includes what the parent process held before the fork.
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
