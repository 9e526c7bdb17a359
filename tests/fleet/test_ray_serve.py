"""The HTTP server with replicas on a Ray cluster that it starts."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serve.load import PROMPTS, draw_alone
from tests.support import bundles
from tests.support.server import Served, serving

PATH = "/v1/images/generations"


def replicas() -> list[int]:
    """Return the processes of replicas, which Ray names after their actor."""
    found = subprocess.run(["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def ask(served: Served, number: int, answers: dict[int, Any], **settings: Any) -> None:
    answers[number] = served.post(PATH, {"prompt": PROMPTS[number], "seed": number, **settings})


@pytest.mark.full
@pytest.mark.timeout(600)
def test_replicas_come_with_the_load_and_go_and_one_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    bundle = bundles.bundle("koala-tiny", batch=2, encoder=True)
    options = ("--ray", "local", "--replicas", "1,2", "--replica-cpus", "0.5")
    with serving(bundle, log=tmp_path / "log", options=options) as served:
        assert len(replicas()) == 1
        answers: dict[int, Any] = {}
        long = {"num_inference_steps": 100}
        threads = [threading.Thread(target=ask, args=(served, number, answers), kwargs=long) for number in range(16)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(replicas()) == 2, 60)
        os.kill(replicas()[0], signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert {status for status, _ in answers.values()} == {200}
        wait_for(lambda: len(replicas()) == 1, 120)
        for number in range(4):
            ask(served, number, answers)
        digests, _ = draw_alone(bundle, 0, prompts=4)
        assert [digest_of(answers[number][1]) for number in range(4)] == digests
    assert not replicas()


def digest_of(answer: Any) -> str:
    return hashlib.sha256(base64.b64decode(answer["data"][0]["b64_json"])).hexdigest()
