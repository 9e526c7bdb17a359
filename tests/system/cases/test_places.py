"""Paths, mounts, links, layers and read-only disks: bundles are built and read wherever a file system allows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bundle.errors import BundleError
from koala_bundle.swap import RECORDS, Staging, prepare_output, real_path, restore, whole
from koala_cli.main import run_app
from koala_runtime import Pipeline
from koala_runtime.selection import open_engines
from tests.support.copies import copy_bundle

SHAPE = "koala-700m-like"
DRAW = ("a cat", "--steps", "1", "--seed", "0", "--target", "cpu")
Mount = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path, bundle: Callable[..., Path]) -> Path:
    """A bundle of the test's own."""
    return copy_bundle(bundle(SHAPE), tmp_path / "bundle")


def hub_cache(source: Path, root: Path) -> Path:
    """Lay a folder out as the hub's cache does: a snapshot of relative links into blobs."""
    snapshot, blobs = root / "snapshots/0123", root / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / f"{number:040x}")
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
    return snapshot


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def fill(staging: Staging, record: str, text: str) -> None:
    for name in ("onnx/a", "b", record):
        (staging.folder / name).parent.mkdir(exist_ok=True)
        (staging.folder / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def expected(record: str, text: str) -> dict[str, str]:
    return dict.fromkeys(("onnx/a", "b", record), text)


# --- paths


def test_run_in_the_bundle(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    assert run_app(["run", ".", *DRAW, "--output", "../x.png"]) == 0
    assert run_app(["run", "./", *DRAW, "--output", "../y.png"]) == 0
    assert run_app(["run", "engines/..", *DRAW, "--output", "../z.png"]) == 0


def test_engines_in_the_bundle(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    assert run_app(["engines", ".", "--target", "cpu"]) == 0
    assert run_app(["inspect", "."]) == 0


def test_another_folder_after_opening(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Pipeline("bundle", "simulated", low_memory=True) as pipe:
        monkeypatch.chdir("/")
        assert pipe("a cat", num_inference_steps=1).images


def test_export_into_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert real_path(Path()) == tmp_path / "out"


def test_a_loop_of_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert run_app(["run", str(tmp_path / "a"), "a cat"]) == 2
    assert "unexpected" not in capsys.readouterr().err
    with pytest.raises(BundleError, match="expected a path of the file system"):
        real_path(tmp_path / "a")


def test_a_name_with_a_nul(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="expected a path of the file system"):
        real_path(Path("a\0b"))


@pytest.mark.parametrize("length", [200, 246, 247, 250, 255])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, length: int) -> None:
    final = tmp_path / ("n" * length)
    for text in ("old", "new"):
        with prepare_output(final, lambda path: path.open("wb")):
            staging = Staging(final, text)
            fill(staging, "engine.json", text)
            staging.commit()
        assert texts(tmp_path) == {f"{final.name}/{k}": v for k, v in expected("engine.json", text).items()}


def test_a_name_that_is_too_long(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="choose a shorter name"), prepare_output(tmp_path / ("ü" * 200), open_lock):
        raise AssertionError("no work begins")


def open_lock(path: Path) -> object:
    return path.open("wb")


# --- the swap


@pytest.mark.parametrize("record", RECORDS)
def test_the_output_is_a_mount_point(tmp_path: Path, mount: Mount, record: str) -> None:
    final = mount(tmp_path / "bundle")
    for text in ("old", "new"):
        with prepare_output(final, open_lock):
            staging = Staging(final, text)
            assert staging.folder.parent == final, "on the same disk"
            fill(staging, record, text)
            staging.commit()
        assert texts(final) == expected(record, text)
    assert final.is_mount()


def test_export_and_engines_on_a_mount_point(smallest: Path, tmp_path: Path, mount: Mount) -> None:
    final = mount(tmp_path / "bundle")
    (final / "lost+found").mkdir()
    options = ["--height", "64", "--width", "64", "--no-gate", "--no-cfg", "--target", "cpu"]
    for steps in ("3", "4"):
        assert run_app(["build", str(smallest), str(final), *options, "--steps", steps]) == 0
        assert open_engines(final, "cpu").manifest.sampling.num_inference_steps == int(steps)
    assert {path.name for path in final.iterdir()} == {
        *("engines", "lost+found", "manifest.json", "onnx", "tokenizer", "tokenizer_2")
    }


def test_engines_are_a_mount_point(own: Path, mount: Mount) -> None:
    shutil.rmtree(own / "engines")
    mount(own / "engines/cpu")
    assert run_app(["engines", str(own), "--target", "cpu"]) == 0
    assert run_app(["run", str(own), *DRAW, "--output", str(own.parent / "x.png")]) == 0


def test_a_mount_in_the_old_folder(tmp_path: Path, mount: Mount) -> None:
    final = tmp_path / "bundle"
    mount(final / "engines")
    (final / "engines/old.plan").write_text("old")
    staging = Staging(final, "key")
    fill(staging, "manifest.json", "new")
    staging.commit()
    assert texts(final) == expected("manifest.json", "new")
    assert (final / "engines").is_mount()


def test_a_folder_of_an_image_layer(tmp_path: Path, mount: Mount) -> None:
    """overlayfs renames no folder that comes from a lower layer (moby#25409)."""
    disk = mount(tmp_path / "disk")
    for name in ("lower/bundle/onnx", "upper", "work", "merged"):
        (disk / name).mkdir(parents=True)
    for name in expected("manifest.json", "old"):
        (disk / "lower/bundle" / name).write_text("old")
    layers = ",".join(f"{kind}dir={disk / kind}" for kind in ("lower", "upper", "work"))
    final = mount(disk / "merged", "overlay", layers) / "bundle"
    with prepare_output(final, open_lock):
        staging = Staging(final, "key")
        fill(staging, "manifest.json", "new")
        staging.commit()
    assert texts(final) == expected("manifest.json", "new")
    assert {path.name for path in final.parent.iterdir()} == {"bundle"}


def test_a_link_in_place_of_the_folder(own: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own)
    shutil.rmtree(own / "engines")
    assert run_app(["engines", str(tmp_path / "link"), "--target", "cpu"]) == 0
    assert run_app(["run", str(tmp_path / "link"), *DRAW, "--output", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "link").is_symlink()


def test_a_link_that_leads_nowhere_yet(smallest: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data/bundle")
    final = real_path(tmp_path / "link")
    with prepare_output(final, open_lock):
        staging = Staging(final, "key")
        fill(staging, "manifest.json", "new")
        staging.commit()
    assert texts(tmp_path / "link") == expected("manifest.json", "new")


def test_a_link_in_place_of_engines(own: Path, tmp_path: Path) -> None:
    (own / "engines/cpu").rename(own / "elsewhere")
    (own / "engines/cpu").symlink_to(own / "elsewhere")
    (own / "elsewhere/engine.json").unlink()
    assert run_app(["engines", str(own), "--target", "cpu"]) == 0
    assert (own / "engines/cpu").is_symlink()
    assert open_engines(own, "cpu").record.plans


def test_a_swap_of_files_that_was_killed(tmp_path: Path) -> None:
    """Files were moved out, and some moved in: a folder without a record, which the next start puts back."""
    final = tmp_path / "bundle"
    (final / ".old/onnx").mkdir(parents=True)
    (final / "onnx").mkdir()
    for name, text in {".old/manifest.json": "old", ".old/onnx/a": "old", "b": "old", "onnx/a": "new"}.items():
        (final / name).write_text(text)
    restore(final)
    assert texts(final) == expected("manifest.json", "old")


def test_a_swap_of_files_that_was_done(tmp_path: Path) -> None:
    final = tmp_path / "bundle"
    (final / ".old").mkdir(parents=True)
    (final / ".old/manifest.json").write_text("old")
    (final / "manifest.json").write_text("new")
    restore(final)
    assert texts(final) == {"manifest.json": "new"}


def test_a_disk_without_locks(tmp_path: Path) -> None:
    def no_lock(path: Path) -> object:
        raise NotImplementedError("FileSystem does not appear to support flock")

    with prepare_output(tmp_path / "bundle", no_lock):
        pass


# --- readers


def test_readers_leave_what_a_killed_writer_left(own: Path) -> None:
    old = own.rename(own.with_name(".bundle.old"))
    before = listing(old.parent)
    assert whole(own) == old
    assert open_engines(own, "cpu").plan("denoiser").is_file()
    assert listing(old.parent) == before


def test_readers_leave_engines_that_a_killed_writer_left(own: Path) -> None:
    old = (own / "engines/cpu").rename(own / "engines/.cpu.old")
    before = listing(own)
    assert open_engines(own).plan("denoiser").parent == old
    assert listing(own) == before


def test_a_read_only_disk_with_leftovers(own: Path, tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk")
    copy = shutil.copytree(own, place / "bundle")
    (copy / "engines/.cpu.old").mkdir()
    (copy / "engines/.cpu.trash").mkdir()
    (place / ".bundle.partial").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert run_app(["run", str(copy), *DRAW, "--output", str(tmp_path / "x.png")]) == 0
    assert run_app(["inspect", str(copy)]) == 0


def test_a_read_only_disk_of_a_killed_swap(own: Path, tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk")
    shutil.copytree(own, place / ".bundle.old")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    assert run_app(["run", str(place / "bundle"), *DRAW, "--output", str(tmp_path / "x.png")]) == 0


def test_a_bundle_in_the_hub_cache(own: Path, tmp_path: Path) -> None:
    """onnxruntime#27353: data files behind links."""
    snapshot = hub_cache(own, tmp_path / "cache")
    assert run_app(["run", str(snapshot), *DRAW, "--output", str(tmp_path / "x.png")]) == 0
    with Pipeline(own, "cpu") as wanted, Pipeline(snapshot, "cpu") as found:
        pictures = [pipe("a cat", seed=1, num_inference_steps=2).images[0].tobytes() for pipe in (wanted, found)]
    assert pictures[0] == pictures[1]


def test_engines_of_a_bundle_in_the_hub_cache(own: Path, tmp_path: Path) -> None:
    shutil.rmtree(own / "engines")
    snapshot = hub_cache(own, tmp_path / "cache")
    for target in ("cpu", "cuda"):
        assert run_app(["engines", str(snapshot), "--target", target]) == 0
    weights = snapshot / "engines/cuda/denoiser.onnx.data"
    assert weights.read_bytes() == (own / "onnx/denoiser.onnx.data").read_bytes()
    assert run_app(["run", str(snapshot), *DRAW, "--output", str(tmp_path / "x.png")]) == 0


def test_a_checkpoint_in_the_hub_cache(smallest: Path, tmp_path: Path) -> None:
    from tests.system.cases.support import Case

    Case(hub_cache(smallest, tmp_path / "cache")).equal()


def test_hard_links(own: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(own, tmp_path / "linked", copy_function=os.link)
    shutil.rmtree(copy / "engines")
    assert run_app(["engines", str(copy), "--target", "cpu"]) == 0


def test_nothing_is_written_while_drawing(own: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    with Pipeline(own, "cpu") as pipe:
        pipe("a cat", num_inference_steps=1)
    assert {path: path.stat().st_mtime_ns for path in own.rglob("*")} == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
def test_no_home(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "KOALA_CACHE_DIR"):
        monkeypatch.setenv(name, "/dev/null/nowhere")
    with Pipeline(own, "cpu") as pipe:
        assert pipe("a cat", num_inference_steps=1).images
