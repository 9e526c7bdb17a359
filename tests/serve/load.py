"""Load on a server: ``python -m tests.serve.load BUNDLE [CLIENTS] [SECONDS]`` prints what came of it as JSON.

Every answer is compared with the picture of its own prompt and seed, drawn before by a bare loop over ``Pipeline``
that also writes files: the pace that the server is measured by. The two take turns, because a machine that others use
is faster in one minute than in the next; a round's share is that of its neighbours' mean.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from koala_bundle.manifest import read_manifest
from koala_runtime import Pipeline
from koala_serve.drawing import write_row
from koala_serve.encoding import Finish
from koala_serve.worker import Finished, Row
from tests.support.server import Served, serving

PROMPTS = [
    f"a {size} {colour} {shape} on a {background} background"
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "star")
    for background in ("white", "black")
]
QUEUE, ROUNDS = 64, 6


@dataclass
class Outcome:
    """What happened to all requests; latencies in seconds, memory in megabytes."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    latencies: list[float] = field(default_factory=list)
    waits_named: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        cuts = statistics.quantiles(self.latencies, n=100) if len(self.latencies) > 1 else [0.0] * 99
        return {
            "statuses": dict(self.statuses),
            "wrong": self.wrong,
            "lost": self.lost[:5],
            "p50": round(cuts[49], 3),
            "p99": round(cuts[98], 3),
            "retry_after": [min(self.waits_named, default=0), max(self.waits_named, default=0)],
            "queued_at_most": max(self.queued, default=0),
            "memory": [round(each) for each in (self.memory[0], self.memory[len(self.memory) // 2], self.memory[-1])],
        }


def draw_alone(bundle: Path, seconds: float, prompts: int = len(PROMPTS)) -> tuple[list[str], float]:
    """Return the digest of each prompt's picture, its number the seed, and how many a second a bare loop draws."""
    batch, digests, count = read_manifest(bundle).profile.batch, dict[int, str](), 0
    with Pipeline(bundle) as pipe:
        pipe([PROMPTS[0]] * batch, seed=[0] * batch)
        started = time.monotonic()
        while time.monotonic() - started < seconds or len(digests) < prompts:
            numbers = [(count + each) % prompts for each in range(batch)]
            output = pipe([PROMPTS[each] for each in numbers], seed=numbers)
            for row, number in enumerate(numbers):
                wanted = Row(PROMPTS[number], None, number, None, None, "png", None)
                written = write_row(row, wanted, output.images[row], output.recipes[row], Finish())
                assert isinstance(written, Finished)
                digests[number] = hashlib.sha256(written.file).hexdigest()
            count += batch
        return [digests[each] for each in range(prompts)], count / (time.monotonic() - started)


async def attack(
    served: Served,
    digests: list[str],
    clients: int,
    seconds: float,
    while_it_lasts: Callable[[Served, float], None] = lambda served, elapsed: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Have clients request pictures, retry after the time that a 429 names, and check every answer.

    What came is added to ``outcome``.
    """
    outcome, started = outcome or Outcome(), time.monotonic()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while time.monotonic() - started < seconds:
            turn += clients
            chosen = turn % len(digests)
            asked = time.monotonic()
            try:
                async with session.post(
                    f"{served.url}/v1/images/generations", json={"prompt": PROMPTS[chosen], "seed": chosen}
                ) as answer:
                    body = await answer.json()
                    outcome.statuses[answer.status] += 1
                    if answer.status == 200:
                        outcome.latencies.append(time.monotonic() - asked)
                        file = base64.b64decode(body["data"][0]["b64_json"])
                        outcome.wrong += hashlib.sha256(file).hexdigest() != digests[chosen]
                        continue
                    wait = int(answer.headers.get("Retry-After", 1))
                    outcome.waits_named.append(wait)
            except aiohttp.ClientError as error:
                outcome.lost.append(repr(error))
                wait = 1
            await asyncio.sleep(min(wait, max(0.0, seconds - (time.monotonic() - started))))

    async def observe() -> None:
        while time.monotonic() - started < seconds:
            await asyncio.sleep(min(2.0, seconds / 10))
            outcome.memory.append(await asyncio.to_thread(served.memory))
            outcome.queued.append(await asyncio.to_thread(served.metric, "koala_num_queue_reqs"))
            while_it_lasts(served, time.monotonic() - started)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        await asyncio.gather(observe(), *(client(session, number) for number in range(clients)))
    return outcome


def main(bundle: Path, clients: int, seconds: float) -> None:
    digests, pace = draw_alone(bundle, seconds / ROUNDS / 2)
    alone, served_at, outcome = [pace], list[float](), Outcome()
    options = ("--queue", str(QUEUE))
    with TemporaryDirectory() as folder, serving(bundle, log=Path(folder, "log"), options=options) as served:
        served.post("/v1/images/generations", {"prompt": PROMPTS[0]})
        for _ in range(ROUNDS):
            before, started = outcome.statuses[200], time.monotonic()
            asyncio.run(attack(served, digests, clients, seconds / ROUNDS, outcome=outcome))
            served_at.append((outcome.statuses[200] - before) / (time.monotonic() - started))
            alone.append(draw_alone(bundle, seconds / ROUNDS / 2)[1])
    shares = [each * 2 / sum(alone[at : at + 2]) for at, each in enumerate(served_at)]
    found = {
        "clients": clients,
        "seconds": seconds,
        "pictures per second": {"alone": _rounded(alone), "served": _rounded(served_at)},
        "shares": _rounded(shares),
        "share": round(statistics.median(shares), 3),
    }
    print(json.dumps(found | outcome.summary(), indent=1))


def _rounded(values: list[float]) -> list[float]:
    return [round(each, 2) for each in values]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(each) for each in (*sys.argv[2:], 200, 120)[:2]))
