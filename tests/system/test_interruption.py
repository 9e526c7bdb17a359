"""A killed or interrupted ``koala`` leaves the old result or the whole new one, and the next run finishes.

Real processes, real kills (SIGKILL, TerminateProcess on Windows), at random moments spread over a whole run. After each
kill the result is read as a reader would: what is there must have, file by file, the bytes that its record says.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

import pytest

from koala_bundle.engine_record import EngineKey, engine_folder, read_engine_record
from koala_bundle.files import check_files, relative, write_sealed
from koala_bundle.manifest import Manifest, read_manifest
from koala_bundle.swap import restore
from koala_bundle.targets import find_target
from koala_engines.availability import obstacles
from koala_runtime.selection import open_engines

OPTIONS = ("--height", "64", "--width", "64", "--precision", "fp32")
# Prints progress in lines, so that a test knows when the compiler is at work; and takes Ctrl-C, which Python would
# not do where a shell started the tests in the background.
WATCHED = """
import contextlib, signal, sys
from koala_cli import main
from koala_cli.commands import engines
signal.signal(signal.SIGINT, signal.default_int_handler)
engines.progress_bar = lambda: contextlib.nullcontext(lambda what, _: print("at work on", what, file=sys.stderr))
main.main()
"""
DIES_AFTER_RENAMING = """
import os, pathlib, koala_cli.main
rename = pathlib.Path.rename
def rename_and_die(path, target):
    rename(path, target) and path.name == {name!r} and os._exit(9)
pathlib.Path.rename = rename_and_die
koala_cli.main.main()
"""
SHAPE = "koala-700m-like"
CTRL_C_AT = {"export": ["text_encoder: tracing"], "rtx": ["at work on rtx: text", *2 * ["at work on rtx: denoiser"]]}


@dataclass(frozen=True)
class Work:
    """A command, the folder it fills, what may stand there before (None: nothing), and what a run of it leaves."""

    arguments: tuple[str, ...]
    folder: Path
    old: Path | None
    new: Any
    seconds: float

    def reset(self) -> None:
        for path in self.folder.parent.glob(f"*{self.folder.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.old:
            shutil.copytree(self.old, self.folder)

    def finish(self) -> str:
        """Run to the end, check that this leaves what an undisturbed run does and nothing else, return what it said."""
        said = finish(start(*self.arguments))
        self.check()
        return said

    def check(self) -> None:
        assert [path.name for path in self.folder.parent.iterdir()] == [self.folder.name]
        assert found(self.folder) == self.new


def start(*arguments: str, program: str | None = None) -> Popen[str]:
    """Start ``koala``, or a small ``program`` around it, in a process of its own."""
    what = ("-m", "koala_cli.main") if program is None else ("-c", program)
    return Popen([sys.executable, *what, *arguments], stdout=PIPE, stderr=PIPE, text=True, encoding="utf-8")


def finish(process: Popen[str], code: int = 0) -> str:
    """Wait for ``process``, check how it ended and return what it said on stderr, then on stdout."""
    said = "".join(reversed(process.communicate()))
    assert process.returncode == code, said
    return said


def timed(*arguments: str) -> float:
    started = time.monotonic()
    finish(start(*arguments))
    return time.monotonic() - started


def kill_after(seconds: float, *arguments: str) -> None:
    process = start(*arguments)
    try:
        process.communicate(timeout=seconds)
        assert process.returncode == 0
    except TimeoutExpired:
        process.kill()
        process.communicate()


def stop_at(line: str, number: int, *arguments: str) -> tuple[int, str]:
    """Send signal ``number`` when ``line`` is reported; return the exit code and everything on stderr."""
    with start(*arguments, program=WATCHED) as process:
        said = ""
        while line not in said:
            piece = process.stderr.readline()
            assert piece, f"no {line!r} in {said}"
            said += piece
        time.sleep(0.05)  # the compiler printed the line from Python; now it is in code of its own again
        process.send_signal(number)
        said += process.stderr.read()
    return process.returncode, said


def found(folder: Path) -> Manifest | EngineKey | None:
    """What a reader finds in ``folder``: nothing, or something whole, whose every byte is checked here."""
    restore(folder)
    beside = {path.name for path in folder.parent.iterdir()}
    assert beside <= {folder.name, *(f".{folder.name}.{kind}" for kind in ("partial", "lock"))}
    if not folder.exists():
        return None
    engines = folder.parent.name == "engines"
    record = read_engine_record(folder.parents[1], find_target(folder.name)) if engines else read_manifest(folder)
    check_files(folder, record.files, "")
    names = {relative(folder, path) for path in folder.rglob("*") if path.is_file()}
    own = {"engine.json" if engines else "manifest.json", *record.files}
    assert {name for name in names if not name.startswith("engines/")} == own
    return record if isinstance(record, Manifest) else record.key


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> tuple[Path, float]:
    """The bundle of an undisturbed export, and the seconds it took."""
    path = tmp_path_factory.mktemp("exported") / "bundle"
    return path, timed("export", str(checkpoint(SHAPE)), str(path), *OPTIONS)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, bundle: Callable[..., Path]) -> Callable[[str], tuple[Path, float]]:
    """Return a function from a target to the engines of an undisturbed build, and the seconds it took."""

    @cache
    def build(name: str) -> tuple[Path, float]:
        if problem := obstacles()[find_target(name)]:
            pytest.skip(problem)
        path = copy_without_engines(bundle(SHAPE), tmp_path_factory.mktemp(f"built-{name}") / "bundle")
        return engine_folder(path, find_target(name)), timed("engines", str(path), "--target", name)

    return build


def copy_without_engines(bundle: Path, path: Path) -> Path:
    return shutil.copytree(bundle, path, ignore=shutil.ignore_patterns("engines"))


@pytest.fixture
def works(
    tmp_path: Path,
    checkpoint: Callable[[str], Path],
    bundle: Callable[..., Path],
    request: pytest.FixtureRequest,
    built: Callable[[str], tuple[Path, float]],
) -> Callable[[str, str], Work]:
    """Return a function from what is to be made and what is there before (``old`` or ``absent``) to the work."""

    def export(before: str) -> Work:
        made, seconds = request.getfixturevalue("exported")
        path = tmp_path / "bundle"
        old = bundle(SHAPE) if before == "old" else None  # 96 px wide, 4 steps, and with cpu engines in it
        arguments = ("export", str(checkpoint(SHAPE)), str(path), *OPTIONS)
        return Work(arguments, path, old, read_manifest(made), seconds)

    def engines(name: str, before: str) -> Work:
        made, seconds = built(name)
        target = find_target(name)
        new = read_engine_record(made.parents[1], target).key
        path = copy_without_engines(bundle(SHAPE), tmp_path / "bundle")
        old = shutil.copytree(made, tmp_path / "old")
        record = json.loads((old / "engine.json").read_text())
        record["key"]["compiler_version"] = "0.0.1"
        write_sealed(old / "engine.json", record)
        arguments = ("engines", str(path), "--target", name)
        return Work(arguments, engine_folder(path, target), old if before == "old" else None, new, seconds)

    def get(name: str, before: str) -> Work:
        work = export(before) if name == "export" else engines(name, before)
        work.folder.parent.mkdir(exist_ok=True)
        work.reset()
        return work

    return get


QUICK = [("cpu", "absent", "last", 3), ("cpu", "old", "last", 3)]
ALL = [
    *itertools.product(["export"], ["absent", "old"], ["last", "each"], [2]),
    *itertools.product(["cpu", "rtx"], ["absent", "old"], ["last", "each"], [3]),
]
FULL = [pytest.param(*case, marks=[pytest.mark.full, pytest.mark.timeout(3600)]) for case in ALL]


@pytest.mark.parametrize(("name", "before", "finished_after", "kills"), [*QUICK, *FULL])
def test_killed_at_random_moments(
    works: Callable[[str, str], Work], name: str, before: str, finished_after: str, kills: int
) -> None:
    work = works(name, before)
    old = found(work.folder)
    assert old != work.new
    # One moment in each equal part of a run: random, and yet the late parts (manifest, swap) get their share.
    draw = random.Random(f"{name} {before} {finished_after}")
    moments = [(part + draw.random()) / kills * work.seconds for part in range(kills)]
    for moment in draw.sample(moments, kills):
        kill_after(moment, *work.arguments)
        state = found(work.folder)
        assert state in (old, work.new)
        if finished_after == "each":
            work.finish()
        if finished_after == "each" or state == work.new:
            work.reset()  # so that the next kill finds work to disturb
    work.finish()


@pytest.mark.parametrize("name", [pytest.param("export", marks=pytest.mark.full), "cpu"])
def test_killed_between_the_two_renames(tmp_path: Path, works: Callable[[str, str], Work], name: str) -> None:
    work = works(name, "old")
    old = found(work.folder)
    finish(start(*work.arguments, program=DIES_AFTER_RENAMING.format(name=work.folder.name)), code=9)
    assert not work.folder.exists()
    opened = open_engines(tmp_path / "bundle", "cpu")  # the runtime puts back what was there
    assert old in (opened.manifest, opened.record.key)
    assert found(work.folder) == old
    work.finish()


def test_killed_after_the_swap(works: Callable[[str, str], Work]) -> None:
    """The new engines are in place, the old ones still beside them: the next run has only those to remove."""
    work = works("cpu", "old")
    finish(start(*work.arguments, program=DIES_AFTER_RENAMING.format(name=".cpu.partial")), code=9)
    assert "up to date" in work.finish()


@pytest.mark.full
def test_goes_on_after_the_last_finished_component(works: Callable[[str, str], Work]) -> None:
    work = works("export", "absent")
    # SIGTERM ends Python as abruptly as SIGKILL does, and Windows has it too.
    stop_at("text_encoder_2: loading", signal.SIGTERM, *work.arguments)
    other = (*work.arguments, "--steps", "7")
    _, said = stop_at("text_encoder_2: loading", signal.SIGTERM, *other)
    assert "finished before" not in said  # leftovers of other options are not used
    # As onnx-ir leaves it where the kill comes while it writes the weights; it must not get into the bundle.
    scratch = work.folder.with_name(".bundle.partial") / "onnx" / ".text_encoder_2.onnx.data.0x0x0x0x"
    scratch.mkdir()
    (scratch / "text_encoder_2.onnx.data").touch()
    said = finish(start(*other))
    assert said.count("finished before, kept") == said.count("text_encoder: finished before, kept") == 1
    assert found(work.folder) == replace(work.new, sampling=replace(work.new.sampling, num_inference_steps=7))


@pytest.mark.full
def test_two_exports_at_once_share_the_work(works: Callable[[str, str], Work]) -> None:
    work = works("export", "absent")
    said = [finish(process) for process in (start(*work.arguments), start(*work.arguments))]
    assert sorted(text.split(": ")[-1] for text in said) == [
        "exported\n",
        "up to date (same checkpoint, options and versions)\n",
    ]
    work.check()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT that can be sent to one process")
@pytest.mark.parametrize("name", [pytest.param("export", marks=pytest.mark.full), "rtx"])
def test_ctrl_c(works: Callable[[str, str], Work], name: str) -> None:
    work = works(name, "old")
    old = found(work.folder)
    for line in CTRL_C_AT[name]:
        code, said = stop_at(line, signal.SIGINT, *work.arguments)
        assert (code, found(work.folder)) == (130, old), said
        assert "interrupted; run the same command again to resume" in said
        assert not any(word in said for word in ("Traceback", "KeyboardInterrupt"))
    work.finish()
