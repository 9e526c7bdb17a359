"""The process of one backend: ``python -m koala_bench.worker NAME WORK``; lines come in, lines go out."""

from __future__ import annotations

import json
import os
import sys
import time

from koala_bench.backends import Work, make


def main(name: str, work: str) -> None:
    """Load, draw the first picture, and then do what each line says: ``draw``, ``finish``."""
    # What libraries print goes with their warnings; the answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    backend = make(name, Work(**json.loads(work)))
    picture = backend.draw()
    answers.write(json.dumps({"shape": picture.shape, "picture": picture.tobytes().hex()}) + "\n")
    for line in sys.stdin:
        if line.strip() == "draw":
            started = time.perf_counter()
            backend.draw()
            answers.write(json.dumps({"seconds": time.perf_counter() - started}) + "\n")
        else:
            backend.parts()  # its hooks and captures, once
            told = {"parts": backend.parts(), "device_bytes": backend.device_bytes(), "packages": backend.packages}
            answers.write(json.dumps({**told, "host_bytes": _peak()}) + "\n")
            return


def _peak() -> int:
    """Most memory that this process held, bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
