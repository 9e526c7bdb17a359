"""Files and folders are whole or absent: digests, atomic writes, staged folders and readers in the middle of a swap."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from koala_bundle.errors import BundleError
from koala_bundle.files import check_files, file_entry, write_atomic
from koala_bundle.places import inside
from koala_bundle.swap import Staging, restore, whole


def test_a_reader_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "bundle"
    final.mkdir()
    (final / "old").touch()
    staging = Staging(final, "key")
    (staging.folder / "new").touch()
    rename, reads = Path.rename, []

    def rename_then_read(path: Path, target: Path) -> Path:
        result = rename(path, target)
        if path == final and not reads:
            reads.append(target)
            assert (whole(final) / "old").is_file()
        return result

    monkeypatch.setattr(Path, "rename", rename_then_read)
    staging.commit()
    assert reads
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in final.iterdir()] == ["new"]


def test_half_a_folder_does_not_come_back(tmp_path: Path) -> None:
    """Killed while it deleted the old folder, which then the user did with the new one: nothing is left to restore."""
    trash = tmp_path / ".bundle.trash"
    trash.mkdir()
    (trash / "manifest.json").touch()
    restore(tmp_path / "bundle")
    assert not [*tmp_path.iterdir()]


def test_leftovers_of_another_key_are_not_used(tmp_path: Path) -> None:
    first = Staging(tmp_path / "bundle", "one")
    piece = first.folder / "piece"
    piece.write_text("whole")
    first.finish("piece", [piece], seconds="1.5")
    again = Staging(tmp_path / "bundle", "one").finished("piece")
    assert again is not None
    assert again.facts == {"seconds": "1.5"}
    piece.write_text("cut")
    assert Staging(tmp_path / "bundle", "one").finished("piece") is None
    assert Staging(tmp_path / "bundle", "two").finished("piece") is None
    assert not piece.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "//host/x", "C:\\x", "C:x", "a\\..\\x"])
def test_a_name_cannot_lead_out_of_a_bundle(tmp_path: Path, name: str) -> None:
    wanted = f"file name {name!r}: expected a path inside the bundle, found one outside; fix it."
    with pytest.raises(BundleError, match=f"^{re.escape(wanted)}$"):
        inside(tmp_path, name, "fix it")


def test_a_damaged_file_is_told_by_what_is_wrong(tmp_path: Path) -> None:
    (path := tmp_path / "b.bin").write_bytes(b"abc")
    files = {"b.bin": file_entry(path)}
    check_files(tmp_path, files, "fix it")
    digests = "SHA-256 ba7816bf8f01cfea..., found a52d159f262b2c6d..."  # of abc and abd
    for content, found in ((b"abcd", "3 bytes, found 4 bytes"), (b"abd", digests), (b"", "3 bytes, found 0 bytes")):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=rf"^{re.escape(f'{path}: expected {found}; fix it.')}$"):
            check_files(tmp_path, files, "fix it")
    path.unlink()
    with pytest.raises(BundleError, match=rf"^{re.escape(f'{path}: expected a file of 3 bytes, found no file; ')}"):
        check_files(tmp_path, files, "fix it")


def test_a_write_that_fails_leaves_the_old_bytes(tmp_path: Path) -> None:
    """The system itself refuses: files of this process may have 64 bytes."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    write_atomic(path := tmp_path / "manifest.json", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"n" * 65)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"
