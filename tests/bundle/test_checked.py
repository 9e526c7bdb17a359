"""Files are read once and remembered; whatever happens to them afterwards is noticed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import koala_bundle.checked
import koala_bundle.files
from koala_bundle.checked import CACHE_VARIABLE, cache_folder, check_files_once
from koala_bundle.errors import BundleError
from koala_bundle.files import FileEntry, file_entry

PAST = 1_700_000_000  # seconds; a file of that time is not being written


class Reads:
    """Counts the files that are read for their digest."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, path: Path) -> FileEntry:
        self.names.append(path.name)
        return file_entry(path)

    def since(self) -> list[str]:
        names, self.names = self.names, []
        return sorted(names)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counter = Reads()
    monkeypatch.setattr(koala_bundle.files, "file_entry", counter)
    return counter


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(koala_bundle.checked, "_SETTLED_NS", -(10**9))  # these files are new, and nobody writes them
    folder = tmp_path / "engines"
    folder.mkdir()
    for name in ("a.plan", "b.plan"):
        (folder / name).write_bytes(name.encode() * 1000)
        os.utime(folder / name, (PAST, PAST))
    return folder


def entries(root: Path) -> dict[str, FileEntry]:
    return {path.name: file_entry(path) for path in sorted(root.iterdir())}


def record(root: Path) -> Path:
    (path,) = (root.parent / "cache" / "checked").iterdir()
    return path


def test_each_file_is_read_once(root: Path, reads: Reads) -> None:
    files = entries(root)
    check_files_once(root, files, "fix")
    assert reads.since() == ["a.plan", "b.plan"]
    check_files_once(root, files, "fix")
    assert reads.since() == []
    check_files_once(root, files, "fix", verify=True)
    assert reads.since() == ["a.plan", "b.plan"]
    assert {path.name for path in root.iterdir()} == files.keys(), "readers write nothing into a bundle"


def rewritten(path: Path) -> None:
    """Other bytes of the same size, with the old time put back."""
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, (PAST, PAST))


def replaced(path: Path) -> None:
    """Another file, another inode, with the old size and time."""
    other = path.with_suffix(".new")
    other.write_bytes(b"x" * path.stat().st_size)
    os.utime(other, (PAST, PAST))
    other.replace(path)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, (PAST, PAST))


def touched(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize("change", [rewritten, replaced, longer, touched])
def test_a_changed_file_is_noticed(root: Path, reads: Reads, change: Callable[[Path], None]) -> None:
    if change is rewritten and sys.platform == "win32":
        pytest.skip("Windows keeps no change time that a program cannot set")
    files = entries(root)
    check_files_once(root, files, "fix")
    change(root / "b.plan")
    with pytest.raises(BundleError, match=r"b\.plan"):
        check_files_once(root, files, "fix")


def test_only_what_changed_is_read_again(root: Path, reads: Reads) -> None:
    files = entries(root)
    check_files_once(root, files, "fix")
    (root / "b.plan").write_bytes(b"new plan")
    os.utime(root / "b.plan", (PAST, PAST))
    reads.since()
    check_files_once(root, entries(root), "fix")
    assert reads.since() == ["b.plan"]
    check_files_once(root, entries(root), "fix")
    assert reads.since() == []


def test_a_file_of_this_moment_is_not_remembered(root: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be written again within one tick of its clock."""
    monkeypatch.undo()
    monkeypatch.setenv(CACHE_VARIABLE, str(root.parent / "cache"))
    files = entries(root)
    counter = Reads()
    monkeypatch.setattr(koala_bundle.files, "file_entry", counter)
    for _ in range(2):
        check_files_once(root, files, "fix")
        assert counter.since() == ["a.plan", "b.plan"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"root": "x", "files": {}}', '{"root": 3, "files": {}}'])
def test_a_damaged_record_is_ignored(root: Path, reads: Reads, content: str) -> None:
    files = entries(root)
    check_files_once(root, files, "fix")
    record(root).write_text(content)
    reads.since()
    check_files_once(root, files, "fix")
    assert reads.since() == ["a.plan", "b.plan"]
    check_files_once(root, files, "fix")
    assert reads.since() == []


def test_a_record_vouches_for_one_digest_of_one_folder(root: Path, reads: Reads) -> None:
    files = entries(root)
    check_files_once(root, files, "fix")
    data = json.loads(record(root).read_text())
    copy = root.parent / "copy"
    shutil.copytree(root, copy)
    reads.since()
    check_files_once(copy, files, "fix")
    assert reads.since() == ["a.plan", "b.plan"]
    assert data["root"] == str(root.resolve())
    with pytest.raises(BundleError, match="SHA-256"):
        check_files_once(root, files | {"a.plan": FileEntry("0" * 64, files["a.plan"].size)}, "fix")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to give a file away")
def test_a_record_of_another_user_is_ignored(root: Path, reads: Reads) -> None:
    files = entries(root)
    check_files_once(root, files, "fix")
    os.chown(record(root), 12345, 12345)
    reads.since()
    check_files_once(root, files, "fix")
    assert reads.since() == ["a.plan", "b.plan"]


def test_a_cache_that_cannot_be_written_costs_a_check(
    root: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = entries(root)
    (root.parent / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(root.parent / "file"))
    for _ in range(2):
        check_files_once(root, files, "fix")
        assert reads.since() == ["a.plan", "b.plan"]


def test_old_records_are_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(koala_bundle.checked, "_KEPT", 2)
    for name in ("one", "two", "three"):
        check_files_once(shutil.copytree(root, root.parent / name), entries(root), "fix")
    assert len([*(root.parent / "cache" / "checked").iterdir()]) == 2


@pytest.mark.parametrize(
    ("platform", "variable", "rest"),
    [("linux", "XDG_CACHE_HOME", "koala-trt"), ("win32", "LOCALAPPDATA", "koala-trt"), ("linux", CACHE_VARIABLE, "")],
)
def test_where_records_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, rest: str
) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / rest
