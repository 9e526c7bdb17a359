"""What may go wrong while a server draws: workers that die, a stop in the middle, requests that take too long."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from koala_cli.main import run_app
from koala_runtime import Recipe, WithheldError, read_watermark
from tests.serve.load import PROMPTS, attack, draw_alone
from tests.support import bundles
from tests.support.server import Served, serving

PATH = "/v1/images/generations"
LONG = {"prompt": PROMPTS[0], "num_inference_steps": 150}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundles.bundle("koala-tiny", batch=2, encoder=True)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def killer(times: int, every: float) -> Any:
    """Return what kills the worker of a server while it is under load."""
    killed: list[int] = []

    def kill(served: Served, elapsed: float) -> None:
        if len(killed) < times and elapsed > every * (len(killed) + 1):
            for pid in served.workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    return kill


def check_load(bundle: Path, log: Path, clients: int, seconds: float, kills: int, queue: int) -> dict[str, Any]:
    digests, _ = draw_alone(bundle, 0, prompts=16)
    with serving(bundle, log=log, options=("--queue", str(queue))) as served:
        outcome = asyncio.run(attack(served, digests, clients, seconds, killer(kills, seconds / (kills + 2))))
        assert served.metric("koala_worker_deaths_total") == kills
        summary = outcome.summary()
    print(json.dumps(summary))
    assert set(outcome.statuses) <= {200, 429} and not outcome.lost and not outcome.wrong
    assert outcome.statuses[200] > 20 and max(outcome.queued) <= queue + 2 * kills  # what a dead worker had is put back
    assert "Traceback" not in log.read_text()
    return summary


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in /proc")
def test_many_clients_and_a_worker_killed_in_the_middle(bundle: Path, log: Path) -> None:
    summary = check_load(bundle, log, clients=50, seconds=5, kills=1, queue=20)
    assert summary["statuses"][429] > 0


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker in /proc")
def test_two_hundred_clients_for_two_minutes(bundle: Path, log: Path) -> None:
    _, middle, last = check_load(bundle, log, clients=200, seconds=120, kills=2, queue=64)["memory"]
    assert last < 1.2 * middle + 20


def test_a_stop_finishes_what_was_accepted(bundle: Path, log: Path) -> None:
    with serving(bundle, log=log) as served:
        answers: list[tuple[int, Any]] = []
        body = {**LONG, "num_inference_steps": 60}
        threads = [threading.Thread(target=lambda: answers.append(served.post(PATH, body))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: served.metric("koala_num_running_reqs") >= 1 and served.metric("koala_num_queue_reqs") >= 1)
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: served.get("/readyz")[0] == 503)
        status, refused = served.post(PATH, body)
        assert status == 503 and refused["error"]["code"] == "stopping"
        for thread in threads:
            thread.join()
        assert [status for status, _ in answers] == [200, 200, 200]
        assert served.process.wait(30) == 0


def test_a_request_that_takes_too_long_is_given_up(bundle: Path, log: Path) -> None:
    with serving(bundle, log=log, options=("--deadline", "0.7")) as served:
        status, answer = served.post(PATH, LONG)
        assert status == 504 and answer["error"]["message"].startswith("the request: expected pictures within 0.7 s")
        wait_for(lambda: served.metric("koala_num_running_reqs") == 0)
        assert served.post(PATH, {"prompt": PROMPTS[0], "num_inference_steps": 1})[0] == 200


def test_two_bundles_are_served_by_name(bundle: Path, log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(bundle, target_is_directory=True)
    with serving(bundle, other, log=log) as served:
        names = [each["id"] for each in json.loads(served.get("/v1/models")[1])["data"]]
        assert names == [bundle.name, "other"]
        one, two = (served.post(PATH, {"prompt": PROMPTS[0], "seed": 1, "model": name})[1]["data"] for name in names)
        assert one == two
        assert served.post("/sdapi/v1/options", {"sd_model_checkpoint": "other [0123]"})[0] == 200
        assert json.loads(served.get("/sdapi/v1/options")[1])["sd_model_checkpoint"] == "other"


def test_bundles_that_cannot_be_served_are_told_before_the_port_opens(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["serve", str(tmp_path / "none")]) == 2
    assert "manifest" in capfd.readouterr().err
    twin = tmp_path / bundle.name
    twin.symlink_to(bundle, target_is_directory=True)
    assert run_app(["serve", str(bundle), str(twin)]) == 2
    assert "folders of different names" in capfd.readouterr().err
    assert run_app(["serve", str(bundle), "--on-image", "nowhere:nothing"]) == 2
    assert "--on-image: expected module:function, which Python can import" in capfd.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "tokenizer" / "tokenizer.json").write_text("{}")
    assert run_app(["serve", str(damaged)]) == 2
    assert "tokenizer.json" in capfd.readouterr().err


def withhold_red(picture: Image.Image, recipe: Recipe) -> Image.Image:
    """What a product's safety checker may be like: it looks at the pixels, and knows the prompt."""
    if "red" in (recipe.prompt or ""):
        raise WithheldError("the picture", expected="one that may be shown", found="red", fix="ask for another")
    return picture


def test_marks_and_a_safety_checker(bundle: Path, log: Path) -> None:
    options = ("--mark", "--on-image", "tests.serve.test_failures:withhold_red")
    with serving(bundle, log=log, options=options) as served:
        bodies = [{"prompt": prompt, "seed": 1, "n": 2} for prompt in ("a green star", "a red circle", "a blue square")]
        answers: dict[str, Any] = {}

        def ask(body: dict[str, Any]) -> None:
            answers[body["prompt"]] = served.post(PATH, body)

        threads = [threading.Thread(target=ask, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    status, told = answers["a red circle"]
    assert (status, told["error"]["code"]) == (400, "withheld") and "may be shown" in told["error"]["message"]
    for prompt in ("a green star", "a blue square"):
        status, answer = answers[prompt]
        assert status == 200
        picture = Image.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        picture.load()
        assert read_watermark(np.asarray(picture.convert("RGB"))).found
        assert "trainedAlgorithmicMedia" in str(picture.info)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
