"""One process that reads changed inputs, and says of each what came of it: a line of JSON before and one after.

It has a memory limit where the system has them, and notes each file that Python opens and each program it starts; a
parent (``tests.fuzz.runs``) looks at the time. Usage: python -m tests.fuzz.worker KIND FIRST COUNT FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

MEMORY_BYTES = 6 * 2**30
"""Of addresses; the libraries that a worker loads take 3 GB of them, most of which is never touched."""
_CODE = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class"}


class Watch:
    """What the process did while ``is_on``: files opened outside of its folder, programs started."""

    def __init__(self, folder: Path) -> None:
        self.is_on, self.seen = False, list[str]()
        self._own = f"{folder.resolve()}{os.sep}"
        code = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/usr", "/lib", "/proc/", "/sys/")
        self._readable = tuple(code)
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event in _CODE:
            self.seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            place, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            own = place.startswith(self._own) and not place.startswith((f"{self._own}canary", f"{self._own}other"))
            if not own and place != os.devnull and (writes or not place.startswith(self._readable)):
                self.seen.append(f"{'wrote' if writes else 'read'} {place}")

    def take(self) -> list[str]:
        """Return what was seen since the last call."""
        seen, self.seen = self.seen, []
        return seen


def limit_memory() -> None:
    """Let allocations fail that a small machine could not make."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(name: str, first: int, count: int, folder: Path) -> None:
    """Read ``count`` inputs from the seed ``first``."""
    os.environ["KOALA_CACHE_DIR"] = str(folder / "cache")
    from tests.fuzz.kinds import KINDS, outcome

    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is inspected is shown, and not looked at
    warnings.simplefilter("ignore")
    kind = KINDS[name](folder)
    limit_memory()
    watch = Watch(folder)
    for seed in range(first, first + count):
        said.write(json.dumps([seed]) + "\n")
        try:
            watch.is_on = True
            ended = outcome(kind, seed)
        except BaseException as error:
            stack = traceback.extract_tb(error.__traceback__)
            frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in stack]
            ended = f"finding: {type(error).__name__} {error!s:.200} at {' '.join(frames[-3:])}"
        finally:
            watch.is_on = False
        if seen := watch.take():
            ended = f"finding: {seen[0]}"
        said.write(json.dumps([seed, ended]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
