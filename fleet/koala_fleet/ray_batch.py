"""A file of prompts to pictures on a cluster, with Ray Data."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data

from koala_bundle.manifest import read_manifest
from koala_fleet.batch import Unit, Update, draw_unit, keep, units
from koala_fleet.nodes import Shipment, connect, fetch, fitting_nodes, on_nodes, ship
from koala_fleet.prompts import PromptRow, read_prompts
from koala_fleet.results import Results
from koala_runtime import Pipeline
from koala_serve.drawing import Drawer
from koala_serve.worker import Event

_CHUNK = 2000  # units that Ray holds at a time


@dataclass(frozen=True)
class Share:
    """How many workers draw at once, and what each takes: processors, and GPUs or shares of one."""

    workers: int
    cpus: float
    gpus: float


class Worker:
    """A worker: a pipeline on some node. Ray starts another in place of one that ends, and gives it the same rows."""

    def __init__(self, shipment: Shipment, options: Mapping[str, Any]) -> None:
        self._pipeline = Pipeline(fetch(shipment), **options)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[bytes]]:
        """Draw the units of a block; every row comes back with what became of it."""
        told: list[tuple[PromptRow, Event]] = []
        drawer = Drawer(self._pipeline)
        for unit in map(pickle.loads, block["unit"]):
            draw_unit(drawer, unit, lambda row, event: told.append((row, event)))
        drawer.close()
        return {"told": [pickle.dumps(each) for each in told]}


def run_on_ray(
    address: str,
    bundle: Path,
    prompts: Path,
    results: Results,
    seed: int,
    options: Mapping[str, Any],
    share: Share,
    count: int,
    update: Update,
) -> None:
    """Draw every row that has no result yet on a cluster; pictures come back to this machine.

    Raises TargetError if no node can draw the bundle.
    """
    connect(address)
    try:
        shipment = ship(bundle)
        nodes = fitting_nodes(shipment, options["target"], share.cpus, share.gpus)
        left = (row for row in read_prompts(prompts, seed) if row.index not in results.done)
        for row, event in _drawn(units(left, read_manifest(bundle).profile.batch), shipment, options, share, nodes):
            keep(results, row, event)
            update(f"{len(results.done)} of {count}", len(results.done) / count)
    finally:
        ray.shutdown()


def _drawn(
    waiting: Iterator[Unit], shipment: Shipment, options: Mapping[str, Any], share: Share, nodes: Sequence[str]
) -> Iterator[tuple[PromptRow, Event]]:
    """Yield what becomes of every row, in any order, while others are drawn."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    while chunk := list(itertools.islice(waiting, _CHUNK)):
        data = ray.data.from_items([{"unit": pickle.dumps(unit)} for unit in chunk], override_num_blocks=len(chunk))
        drawn = data.map_batches(
            Worker,
            fn_constructor_args=(shipment, dict(options)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=share.workers),
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
            label_selector=on_nodes(nodes),
        )
        for row in drawn.iter_rows():
            yield pickle.loads(row["told"])
