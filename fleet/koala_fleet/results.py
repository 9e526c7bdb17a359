"""What became of each row of a file of prompts: one line each in ``results.jsonl``, beside the pictures."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from koala_bundle.codec import CodecError, from_json, to_json
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.files import write_atomic, write_json
from koala_fleet.prompts import PromptRow

RESULTS, RECORD, LOCK = "results.jsonl", "batch.json", ".lock"


@dataclass(frozen=True)
class Result:
    """Of row ``index``: its picture's ``file`` with digest and seed, or the four parts of the ``error``."""

    index: int
    id: str
    seed: int
    file: str | None = None
    sha256: str | None = None
    error: dict[str, str] | None = None


@dataclass(frozen=True)
class Record:
    """What the pictures in a folder were drawn from: digests of the rows, and of the bundle's manifest."""

    prompts: str
    bundle: str


class Results:
    """The results in a folder, each row's exactly once; a kill leaves whole lines and whole pictures.

    One process at a time writes to a folder. Raises ArgumentError for another, and for a folder of other results.

    A picture is written before its line, so that a row without a line is drawn again, to the same bytes. ``done`` are
    the indices of the rows that have a line.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self._folder, self._path = folder, folder / RESULTS
        self.failed = 0
        with ExitStack() as held:
            _hold(folder / LOCK, held)
            _check_record(folder / RECORD, record)
            self.done = {result.index for result in self._kept()}
            self._stream = held.enter_context(self._path.open("a", encoding="utf-8", newline="\n"))
            self._held = held.pop_all()

    def close(self) -> None:
        """Close the file, which is whole at any time, and let others write to the folder."""
        self._held.close()

    def finish(self, row: PromptRow, file: bytes) -> None:
        """Keep a picture."""
        write_atomic(self._folder / row.file, file)
        digest = hashlib.sha256(file).hexdigest()
        self._append(Result(row.index, row.name, row.request.seed, row.file, digest))

    def fail(self, row: PromptRow, error: KoalaError) -> None:
        """Say why there is no picture."""
        parts = {"what": error.what, "expected": error.expected, "found": error.found, "fix": error.fix}
        self._append(Result(row.index, row.name, row.request.seed, error=parts))
        self.failed += 1

    def _append(self, result: Result) -> None:
        if result.index in self.done:
            return
        self._stream.write(_line(result))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.done.add(result.index)

    def _kept(self) -> list[Result]:
        """Return the pictures of earlier runs; removes other lines, whose rows are drawn again.

        These are lines that a kill cut off, failures, and those of pictures that are no longer there.
        """
        if not self._path.exists():
            return []
        whole = []
        for line in self._path.read_text("utf-8", errors="replace").splitlines():
            try:
                result = from_json(Result, _empty() | json.loads(line))
            except (ValueError, RecursionError, TypeError):
                continue
            if result.file is not None and (self._folder / result.file).is_file():
                whole.append(result)
        write_atomic(self._path, "".join(map(_line, whole)).encode())
        return whole


def _empty() -> dict[str, Any]:
    return {"file": None, "sha256": None, "error": None}


def _line(result: Result) -> str:
    told = {name: value for name, value in to_json(result).items() if value is not None}
    return json.dumps(told, ensure_ascii=False) + "\n"


def _hold(path: Path, held: ExitStack) -> None:
    """Take a folder's lock. Disks without locks, which filelock tells by NotImplementedError, are used without."""
    try:
        with suppress(NotImplementedError):
            held.enter_context(FileLock(path, timeout=0))
    except Timeout:
        raise ArgumentError(
            str(path.parent),
            expected="a folder to which nothing else writes",
            found="another `koala batch` at work in it",
            fix="wait for it, or choose another folder",
        ) from None


def _check_record(path: Path, record: Record) -> None:
    """Write the record of a new folder; refuse one with results of something else."""
    if not path.exists():
        write_json(path, record)
        return
    try:
        kept = from_json(Record, json.loads(path.read_text("utf-8")))
    except (ValueError, RecursionError, CodecError):
        kept = Record("", "")
    others = [what for what in ("prompts", "bundle") if getattr(kept, what) != getattr(record, what)]
    if others:
        raise ArgumentError(
            str(path.parent),
            expected="results of the same prompts, pictures, seed and bundle",
            found="results of another bundle"
            if others == ["bundle"]
            else "results of other prompts, pictures or seeds",
            fix="choose another folder, or remove this one",
        )
