"""Each way to embed in ``examples/embedding`` draws the pictures that a pipeline draws, and survives what it says."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from koala_runtime import ArgumentError, DeviceError, Pipeline, to_png
from koala_tiny.scenes import words
from tests.support.judge import judge
from tests.support.koala_tiny import requests
from tests.support.server import Served, free_port, serving

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "embedding"
REQUESTS = requests(1, 4)
PROMPTS = [words(request) for request in REQUESTS]
TOO_LONG = "a koala " * 5000
KEY = "eucalyptus"


@pytest.fixture(scope="module")
def tiny(bundle: Callable[..., Path]) -> Path:
    return bundle("koala-tiny")


@pytest.fixture(scope="module")
def files(tiny: Path) -> list[bytes]:
    """What a pipeline draws for each prompt, its number the seed."""
    with Pipeline(tiny) as pipe:
        drawn = [pipe(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    for request, each in zip(REQUESTS, drawn, strict=True):
        assert all(judge(np.asarray(each.images[0]), request).values())
    return [to_png(each.images[0], each.recipes[0]) for each in drawn]


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving(tiny, log=log, env={"KOALA_API_KEY": KEY}) as served:
        yield served


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that imports an example by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: __import__(name)


def run(*command: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def pixels(file: bytes | Path) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return np.asarray(image)


def test_the_readme_names_every_example() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert {path.name for path in FOLDER.iterdir() if path.is_file() and f"`{path.name}`" not in readme} == {
        "README.md"
    }


# --- script.py


def test_the_script(tiny: Path, files: list[bytes], tmp_path: Path) -> None:
    done = run(sys.executable, FOLDER / "script.py", tiny, PROMPTS[0], tmp_path / "koala.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "koala.png").read_bytes() == files[0]


def test_the_script_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(sys.executable, FOLDER / "script.py", tmp_path / "none", PROMPTS[0], tmp_path / "koala.png")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "expected" in done.stderr
    assert not (tmp_path / "koala.png").exists()


# --- asyncio_service.py


def test_tasks_share_a_pipeline(
    tiny: Path,
    files: list[bytes],
    example: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    asyncio.run(example("asyncio_service").main(str(tiny), PROMPTS[0], TOO_LONG, PROMPTS[2]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"0.png": files[0], "2.png": files[2]}
    assert capsys.readouterr().err.startswith("1: ArgumentError(")


def test_a_task_waits_its_turn_or_is_sent_away(tiny: Path, files: list[bytes], example: Callable[[str], Any]) -> None:
    module = example("asyncio_service")

    async def use(painter: Any) -> None:
        first = asyncio.create_task(painter.draw(PROMPTS[0], 0))
        waiting = [asyncio.create_task(painter.draw("", 0)) for _ in range(module.MOST_WAITING - 1)]
        await asyncio.sleep(0)
        with pytest.raises(asyncio.QueueFull):
            await painter.draw(PROMPTS[1], 1)
        assert not first.done(), "the event loop goes on while a picture is drawn"
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert await painter.draw(PROMPTS[1], 1) == files[1]
        assert await first == files[0]

    painter = module.Painter(str(tiny))
    drawn = []
    monitored, painter._draw = painter._draw, lambda *call: drawn.append(call) or monitored(*call)
    asyncio.run(use(painter))
    painter.close()
    assert drawn == [(PROMPTS[0], 0), (PROMPTS[1], 1)], "what was cancelled in time is not drawn"
    with pytest.raises(RuntimeError):
        asyncio.run(painter.draw(PROMPTS[0], 0))


def test_a_gpu_that_fails_is_opened_again(tiny: Path, files: list[bytes], example: Callable[[str], Any]) -> None:
    painter = example("asyncio_service").Painter(str(tiny))
    painter._pipe.close()
    painter._pipe = broken = Pipeline(tiny, "simulated")
    broken.executor.device.failures["sticky"] = "an illegal memory access"  # type: ignore[attr-defined]
    with pytest.raises(DeviceError):
        asyncio.run(painter.draw(PROMPTS[0], 0))
    assert asyncio.run(painter.draw(PROMPTS[0], 0)) == files[0]
    painter.close()


# --- worker_pool.py


def test_a_pool_draws_all_although_a_process_dies(
    tiny: Path, files: list[bytes], example: Callable[[str], Any]
) -> None:
    def kill_the_first() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    drawn = dict(example("worker_pool").draw_all(str(tiny), [*PROMPTS, TOO_LONG], [None, None]))
    killer.join()
    assert isinstance(drawn.pop(4), ArgumentError)
    assert [drawn[number] for number in range(4)] == files
    assert multiprocessing.active_children() == []


# --- client.py, curl.sh


def test_the_client(served: Served, files: list[bytes], tmp_path: Path, example: Callable[[str], Any]) -> None:
    env = {"KOALA_URL": f"{served.url}/v1", "KOALA_API_KEY": KEY}
    done = run(sys.executable, FOLDER / "client.py", PROMPTS[0], tmp_path / "koala.png", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"koala.png", "koala-0.jpg", "koala-1.jpg"}
    assert np.array_equal(pixels(tmp_path / "koala.png"), pixels(files[0]))
    assert pixels(tmp_path / "koala-1.jpg").shape == pixels(files[0]).shape

    module = example("client")
    with module.openai.OpenAI(base_url=env["KOALA_URL"], api_key=KEY) as client:
        module.draw(client, PROMPTS[0], tmp_path / "again.png")
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(files[0]))


def test_the_client_says_what_is_wrong(
    served: Served, tmp_path: Path, example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = example("client")
    monkeypatch.setattr(client, "URL", f"{served.url}/v1")
    monkeypatch.setenv("KOALA_API_KEY", KEY)
    with pytest.raises(SystemExit, match=r"400: .*prompt"):
        client.main(TOO_LONG, str(tmp_path / "koala.png"))
    monkeypatch.setenv("KOALA_API_KEY", "wrong")
    with pytest.raises(SystemExit, match=r"401: .*API key"):
        client.main(PROMPTS[0], str(tmp_path / "koala.png"))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not shutil.which("curl") or not shutil.which("jq"), reason="no curl, or no jq")
def test_curl(served: Served, files: list[bytes], tmp_path: Path) -> None:
    env = {"KOALA_URL": f"{served.url}/v1", "KOALA_API_KEY": KEY}
    done = run("sh", FOLDER / "curl.sh", PROMPTS[0], tmp_path / "koala.png", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(pixels(tmp_path / "koala.png"), pixels(files[0]))
    done = run("sh", FOLDER / "curl.sh", PROMPTS[0], tmp_path / "none.png", env=env | {"KOALA_API_KEY": "wrong"})
    assert done.returncode == 1
    assert "authentication_error" in done.stderr
    assert not (tmp_path / "none.png").exists()


def test_no_server(tmp_path: Path, example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client, url = example("client"), f"http://127.0.0.1:{free_port()}/v1"
    monkeypatch.setattr(client, "URL", url)
    monkeypatch.setattr(client, "RETRIES", 0)
    with pytest.raises(SystemExit, match=f"{re.escape(url)}: Connection error"):
        client.main(PROMPTS[0], str(tmp_path / "koala.png"))
