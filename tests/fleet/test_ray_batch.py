"""500 prompts on a cluster of two nodes, whose workers are killed; and a bundle that travels to its nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.load import PROMPTS
from tests.support import bundles

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
ROWS = 500


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes, as Ray simulates them: processes of their own on this machine."""
    pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundles.bundle("koala-tiny", batch=2, encoder=True)


def draw(bundle: Path, prompts: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "koala_cli.main", "batch", str(bundle), str(prompts), str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def workers() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::.*MapWorker"], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def results(output: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text("utf-8").splitlines()]
    assert len({line["index"] for line in lines}) == len(lines)
    return {line["index"]: line for line in lines}


def test_workers_that_are_killed_lose_nothing_and_repeat_nothing(cluster: str, bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": PROMPTS[number % len(PROMPTS)], "num_inference_steps": 2 + number % 3} for number in range(ROWS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < 3 and not over.wait(0.2):
            path = tmp_path / "ray" / "results.jsonl"
            done = len(path.read_text().splitlines()) if path.exists() else 0
            running = [pid for pid in workers() if pid not in killed]
            if running and done > 100 * (len(killed) + 1):
                os.kill(running[0], signal.SIGKILL)
                killed.append(running[0])

    killer = threading.Thread(target=kill)
    killer.start()
    options = ("--ray", cluster, "--workers", "2", "--worker-cpus", "0.5")
    done = draw(bundle, prompts, tmp_path / "ray", *options)
    over.set()
    killer.join()
    assert done.returncode == 0, done.stderr
    assert len(killed) == 3 and "Traceback" not in done.stderr
    assert draw(bundle, prompts, tmp_path / "local").returncode == 0
    there, here = results(tmp_path / "ray"), results(tmp_path / "local")
    assert there == here and len(here) == ROWS
    for row in here.values():
        assert (tmp_path / "ray" / row["file"]).read_bytes() == (tmp_path / "local" / row["file"]).read_bytes()


def test_a_bundle_travels_once_to_each_node_and_is_checked_there(cluster: str, bundle: Path, tmp_path: Path) -> None:
    script = """
import dataclasses, os, sys
from pathlib import Path
import ray
from koala_fleet.nodes import connect, fetch, fitting_nodes, ship
from koala_bundle.errors import KoalaError
connect(sys.argv[1])
shipment = dataclasses.replace(ship(Path(sys.argv[2])), path=Path("/not/here"))
places = {ray.get(ray.remote(fetch).remote(shipment)) for _ in range(4)}
(place,) = places
print(place)
print(len(fitting_nodes(shipment, "cpu", 0.5, 0)))
plan = next((place / "engines" / "cpu").glob("denoiser*.onnx"))
plan.write_bytes(plan.read_bytes()[:-1] + b"x")
try:
    fitting_nodes(shipment, "cpu", 0.5, 0)
except KoalaError as error:
    print(error)
try:
    fitting_nodes(shipment, "cpu", 64, 0)
except KoalaError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, cluster, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    place, fitting, damaged, small = done.stdout.splitlines()[-4:]
    assert Path(place).parent.name == "bundles"
    assert fitting == "2" and "SHA-256" in damaged and "node " in damaged
    assert "found none that is large enough" in small


def test_a_local_cluster_is_one_of_its_own(cluster: str) -> None:
    script = "from koala_fleet.nodes import connect; import ray; connect('local'); print(len(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"
