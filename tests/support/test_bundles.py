"""The cache of bundles: whatever may change a bundle's bytes changes the name of its entry, and nothing else does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import koala_export
from koala_bundle.engine_record import engine_folder, read_engine_record
from koala_bundle.files import check_files
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU
from tests.support import bundles
from tests.support.bundles import entry_name, environment, file_digests, is_whole, open_entry, sources

SOURCES = Path(koala_export.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(SOURCES, tmp_path / SOURCES.name)


def append_a_comment(folder: Path) -> None:
    with (folder / "passes" / "chunk.py").open("a") as stream:
        stream.write("#")


def rename(folder: Path) -> None:
    (folder / "gate.py").rename(folder / "door.py")


def swap(folder: Path) -> None:
    one, other = folder / "gate.py", folder / "trace.py"
    one_text, other_text = one.read_text(), other.read_text()
    one.write_text(other_text)
    other.write_text(one_text)


def add_a_file(folder: Path) -> None:
    (folder / "passes" / "table.json").write_text("{}")


@pytest.mark.parametrize("change", [append_a_comment, rename, swap, add_a_file])
def test_a_changed_source_changes_the_key(copy: Path, change: Callable[[Path], None]) -> None:
    before = file_digests(copy)
    assert before == file_digests(SOURCES), "where the sources lie does not matter"
    change(copy)
    assert entry_name("bundle", file_digests(copy)) != entry_name("bundle", before)


def test_bytecode_and_dates_do_not_matter(copy: Path) -> None:
    before = file_digests(copy)
    (copy / "__pycache__").mkdir(exist_ok=True)
    (copy / "__pycache__" / "gate.pyc").write_bytes(b"bytecode")
    os.utime(copy / "gate.py", (0, 0))
    assert file_digests(copy) == before


def test_every_package_that_makes_a_bundle_is_in_the_key() -> None:
    names = {name.split("/")[0] for name in sources()}
    assert names == {"koala_bundle", "koala_machine", "koala_export", "koala_engines"}
    for name in ("koala_export/passes/hoist.py", "koala_engines/cpu.py", "koala_bundle/tensors.py"):
        assert name in sources()


def test_versions_options_and_checkpoints_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {entry_name("bundle", *parts) for parts in ((), ("fp16",), ("fp32",), ({"unet": "0"},), ({"unet": "1"},))}
    assert any(line.startswith("torch==") for line in environment())
    assert any(line.startswith("onnxruntime==") for line in environment())
    other = (*environment()[:-1], "torch==0.1")
    monkeypatch.setattr(bundles, "environment", lambda: other)
    names |= {entry_name("bundle"), entry_name("engines")}
    assert len(names) == 7


def test_options_that_are_defaults_are_the_same_bundle(bundle: Callable[..., Path]) -> None:
    shared = bundle("koala-700m-like")
    assert bundle("koala-700m-like", precision="fp32", width=96, batch=1) == shared
    manifest, record = read_manifest(shared), read_engine_record(shared, CPU)
    check_files(shared, manifest.files, "")
    check_files(engine_folder(shared, CPU), record.files, "")
    assert (manifest.profile.height, manifest.profile.width, manifest.profile.precision) == (64, 96, "fp32")


@pytest.mark.parametrize("file", ["manifest.json", "onnx/denoiser.onnx.data", "engines/cpu/vae_decoder.onnx"])
def test_an_entry_that_was_changed_is_not_whole(bundle: Callable[..., Path], tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(bundle("koala-700m-like"), tmp_path / "bundle")
    assert is_whole(copy)
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (copy / file).write_bytes(data)
    assert not is_whole(copy)


def test_entries_that_nobody_uses_go(tmp_path: Path) -> None:
    paths = [open_entry(name, tmp_path) for name in ("old", "new")]
    for path in paths:
        (path / "onnx").mkdir(parents=True)
    long_ago = time.time() - 2 * bundles.UNUSED
    os.utime(tmp_path / "old.used", (long_ago, long_ago))
    (tmp_path / "old.lock").touch()
    open_entry("new", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "new.used"}
    assert (paths[1] / "onnx").is_dir()
    open_entry("old", tmp_path)
    assert not paths[0].exists(), "it is made again"
