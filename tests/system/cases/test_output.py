"""Output is made sure of before the work; what comes from outside is never markup; any console shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_cli.main import run_app
from tests.support.copies import copy_bundle

SHAPE = "koala-700m-like"
Mount = Callable[..., Path]


@pytest.fixture
def draw(
    bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, bool]]:
    """Return a function that draws to a file; gives the exit code, what was said, and whether work was begun."""
    import koala_runtime.pipeline

    path, begun = bundle(SHAPE), list[object]()
    make_request = koala_runtime.pipeline.make_request

    def noted(*arguments: object, **named: object) -> object:
        begun.append(1)
        return make_request(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(koala_runtime.pipeline, "make_request", noted)

    def run(output: object, *options: str) -> tuple[int, str, bool]:
        begun.clear()
        code = run_app(["run", str(path), "a cat", "--steps", "1", "--seed", "0", "--output", str(output), *options])
        shown = capsys.readouterr()
        assert "unexpected" not in shown.err
        return code, shown.err + shown.out, bool(begun)

    return run


def refused(result: tuple[int, str, bool], *parts: str) -> None:
    code, said, begun = result
    assert (code, begun) == (2, False), said
    assert not [part for part in parts if part not in said], said


def test_a_folder(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    refused(draw(tmp_path / "x.png"), "--output: expected a file that can be written", "name a file in it")


@pytest.mark.parametrize("length", [241, 246, 251, 255])
def test_a_long_name(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, length: int) -> None:
    output = tmp_path / ("n" * (length - 4) + ".png")
    assert draw(output)[0] == 0
    assert [*tmp_path.iterdir()] == [output]


def test_a_name_that_is_too_long(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    refused(draw(tmp_path / ("n" * 252 + ".png")), "choose a shorter name")
    refused(draw(tmp_path / ("é" * 130 + ".png")), "choose a shorter name")


def test_a_read_only_disk(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, mount: Mount) -> None:
    place = mount(tmp_path / "disk")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    refused(draw(place / "x.png"), "Read-only file system", "not mounted read-only")


@pytest.mark.parametrize("ending", ["wmf", "palm", "emf", "hdf5", "grib", "bufr", "txt", "", "png.", "PnG2"])
def test_formats_that_are_not_written(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, ending: str) -> None:
    refused(draw(tmp_path / f"x.{ending}"), "end the name in .png, .jpg or .webp")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "webp", "bmp", "tiff", "gif", "ppm", "pdf"])
def test_formats_that_are_written(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, ending: str) -> None:
    assert draw(tmp_path / f"x.{ending}")[0] == 0
    assert (tmp_path / f"x.{ending}").stat().st_size


def test_a_link_is_followed(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "x.png").symlink_to("pictures/y.png")
    assert draw(tmp_path / "x.png")[0] == 0
    assert (tmp_path / "x.png").is_symlink()
    assert (tmp_path / "pictures/y.png").is_file()


def test_a_link_into_no_folder(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("gone/y.png")
    refused(draw(tmp_path / "x.png"), "make the folder")


def test_a_link_to_a_folder(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path)
    refused(draw(tmp_path / "x.png"), "expected a file that can be written")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX")
def test_a_pipe(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    refused(draw(tmp_path / "x.png"), "not a file")


def test_a_file_in_a_file(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    refused(draw(tmp_path / "a.png/b.png"), "expected a file in a folder that exists")


def test_an_empty_name(draw: Callable[..., tuple[int, str, bool]]) -> None:
    refused(draw(""), "expected a picture file")


@pytest.mark.parametrize("name", ["v1.5 [final].png", "a:fire:.png", "[bold]x[bold].png", "%s{0}.png", "考拉 🐨.png"])
def test_the_name_is_said_as_it_is(draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, name: str) -> None:
    code, said, _ = draw(tmp_path / name)
    assert (code, (tmp_path / name).is_file()) == (0, True)
    assert said.endswith(f"{tmp_path / name}\n")


@pytest.mark.parametrize("page", ["folder", "gone/page.html", "n" * 300])
def test_the_page_of_verify(
    bundle: Callable[..., Path], tmp_path: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    assert run_app(["verify", str(tmp_path), str(bundle(SHAPE)), "--html", str(tmp_path / page)]) == 2
    assert "--html: expected a file" in capsys.readouterr().err


def test_the_folder_of_bench(bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_app(["bench", str(tmp_path), str(bundle(SHAPE)), "--output", str(tmp_path / "file")]) == 2
    assert "--output: expected a folder that can be made" in capsys.readouterr().err


# --- markup


@pytest.mark.parametrize("name", ["model [v2]", "a[/b]", ":fire:", "[red]x", "[link=http://x]", "\\[", "a\tb", "{x}"])
def test_bundles_of_any_name(
    bundle: Callable[..., Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    copy_bundle(bundle(SHAPE), place)
    assert run_app(["inspect", str(place)]) == 0
    capsys.readouterr()
    assert run_app(["engines", str(place), "--target", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{str(place).expandtabs()}: cpu: up to date")
    assert run_app(["run", str(place / "nowhere"), "a cat"]) == 2
    assert f"error {place}/nowhere/manifest.json: expected".expandtabs() in capsys.readouterr().err.expandtabs()


def test_a_prompt_of_markup(
    draw: Callable[..., tuple[int, str, bool]], tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    output = tmp_path / "x.png"
    assert run_app(["run", str(bundle(SHAPE)), "[/cat] :smile: [red]", "--steps", "1", "--output", str(output)]) == 0
    assert run_app(["inspect", str(output)]) == 0


# --- consoles


def console(bundle: Path, output: str, encoding: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    words = command or ("run", str(bundle), "crème 🐨", "--steps", "1", "--output", output)
    return subprocess.run(
        [sys.executable, "-m", "koala_cli.main", *words], env=environment, capture_output=True, check=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there the console is set to UTF-8")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_cannot_show_the_name(bundle: Callable[..., Path], tmp_path: Path, encoding: str) -> None:
    done = console(bundle(SHAPE), str(tmp_path / "考拉.png"), encoding)
    assert (done.returncode, (tmp_path / "考拉.png").is_file()) == (0, True), done.stderr
    assert done.stdout.strip().endswith(b"\\u8003\\u62c9.png")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_name_of_bytes_that_are_no_text(bundle: Callable[..., Path], tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.png")
    done = console(bundle(SHAPE), str(tmp_path / name), "utf-8")
    assert (done.returncode, (tmp_path / name).is_file()) == (0, True), done.stderr
    assert done.stdout.strip().endswith(b"\xff\xfe.png")


@pytest.mark.skipif(sys.platform == "win32", reason="there the console is set to UTF-8")
def test_json_on_an_ascii_console(bundle: Callable[..., Path], tmp_path: Path) -> None:
    assert run_app(["run", str(bundle(SHAPE)), "考拉", "--steps", "1", "--output", str(tmp_path / "x.png")]) == 0
    done = console(bundle(SHAPE), "", "ascii", "inspect", str(tmp_path / "x.png"), "--json")
    assert json.loads(done.stdout)["prompt"] == "考拉"
