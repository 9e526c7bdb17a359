"""Staged folders: a reader in the middle of a swap does not break it, and half a folder never comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from koala_bundle.files import Staging, restore


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
            restore(final)
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
