"""Workers of the HTTP server that are replicas of a Ray Serve deployment: as many as the load asks for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from koala_bundle.errors import DeviceError
from koala_fleet.nodes import Shipment, fetch, fitting_nodes, on_nodes, ship
from koala_runtime import Pipeline
from koala_serve.drawing import Drawer, warm_up
from koala_serve.encoding import Finish
from koala_serve.worker import Batch, Event, Finished, Refused, WorkerDied

LANES = 2
"""Batches per replica: one is drawn while the files of another are written."""
_UP_AFTER, _DOWN_AFTER = 2.0, 20.0  # seconds of more and of less load


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, at least and at most, and what each takes: processors, and GPUs or shares of one."""

    least: int
    most: int
    cpus: float
    gpus: float


class Replica:
    """A pipeline on some node of the cluster."""

    def __init__(self, shipment: Shipment, options: Mapping[str, Any], finish: Finish) -> None:
        pipeline = Pipeline(fetch(shipment), **options)
        warm_up(pipeline)
        self._drawer, self._drawing = Drawer(pipeline, finish), ThreadPoolExecutor(1)

    async def draw(self, batch: Batch) -> AsyncGenerator[Event]:
        """Yield what happens until every row is finished or refused; a request that is cancelled ends the drawing."""
        loop, events, cancelled = asyncio.get_running_loop(), asyncio.Queue[Event](), asyncio.Event()

        def send(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        left = set(range(len(batch.rows)))
        drawing = self._drawing.submit(self._drawer.draw, batch, send, cancelled.is_set)
        drawing.add_done_callback(_end_with_the_device)
        try:
            while left:
                event = await events.get()
                if isinstance(event, Finished | Refused):
                    left.discard(event.row)
                yield event
        finally:
            cancelled.set()


def _end_with_the_device(drawing: Future[None]) -> None:
    """End the replica after an error of its GPU, which may stay with the process; Ray Serve starts another."""
    if isinstance(drawing.exception(), DeviceError):
        os._exit(1)


class RayWorker:
    """A lane to a deployment: draws one batch after the other, each on whichever replica is free."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(stream=True)
        self._answers: dict[int, Any] = {}

    async def open(self) -> None:
        """Do nothing: Ray Serve starts replicas, and others in place of those that end."""

    async def draw(self, batch: Batch) -> AsyncGenerator[Event]:
        """Yield what happens until every row is finished or refused. Raises WorkerDied."""
        answer = self._answers[batch.number] = self._handle.draw.remote(batch)
        try:
            async for event in answer:
                yield event
        except RayError as error:
            raise WorkerDied from error
        finally:
            del self._answers[batch.number]
            answer.cancel()

    def cancel(self, number: int) -> None:
        """Give a batch up after the step that is being drawn."""
        if number in self._answers:
            self._answers[number].cancel()

    async def close(self) -> None:
        """Do nothing: the deployment ends with ``shut_down``."""


def deploy(name: str, bundle: Path, options: Mapping[str, Any], scale: Scale, finish: Finish) -> Sequence[RayWorker]:
    """Start replicas that draw a bundle, and return lanes to them. Raises TargetError if no node can draw it."""
    shipment = ship(bundle)
    nodes = fitting_nodes(shipment, options["target"], scale.cpus, scale.gpus)
    deployment = serve.deployment(
        Replica,
        name=name,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus, "label_selector": on_nodes(nodes)},
        max_ongoing_requests=LANES,
        autoscaling_config={
            "min_replicas": scale.least,
            "initial_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": 1,
            "upscale_delay_s": _UP_AFTER,
            "downscale_delay_s": _DOWN_AFTER,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 2.0,
        },
    )
    handle = serve.run(deployment.bind(shipment, dict(options), finish), name=name, route_prefix=None)
    return [RayWorker(handle) for _ in range(LANES * scale.most)]


def shut_down() -> None:
    """End all replicas, and the cluster if it was started here."""
    serve.shutdown()
    ray.shutdown()
