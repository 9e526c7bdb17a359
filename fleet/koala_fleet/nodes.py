"""A bundle on the nodes of a Ray cluster: there once per node, checked, and engines picked for what the node has."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from koala_bundle.checked import cache_folder
from koala_bundle.engine_record import ENGINES
from koala_bundle.errors import KoalaError, TargetError
from koala_bundle.files import file_entry, relative
from koala_bundle.manifest import MANIFEST, TOKENIZERS, read_manifest
from koala_bundle.places import inside
from koala_bundle.swap import whole

_FIX = "ship the bundle again"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shipment:
    """A bundle as it travels: where it lies on the machine that sent it, its digest, and the bytes of its files."""

    path: Path
    digest: str
    files: Mapping[str, Any]  # by name: references to objects of Ray's store


def connect(address: str) -> None:
    """Join the cluster at ``address`` (``auto``: that of this machine), or start one here for ``local``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for library in ("ray", "ray.data", "ray.serve"):  # their progress and advice, which would break up ours
        logging.getLogger(library).setLevel(logging.ERROR)
    # Without an address, Ray joins a cluster of this machine if it finds one, and would go with it.
    dashboard = False if address == "local" else None
    ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)


def on_nodes(nodes: Sequence[str]) -> dict[str, str]:
    """Return the labels with which Ray places work on these nodes alone."""
    return {"ray.io/node-id": f"in({','.join(nodes)})"}


def ship(bundle: Path) -> Shipment:
    """Return a bundle as a shipment; its files are put into Ray's store only if there is more than one node."""
    path = whole(bundle.absolute())
    read_manifest(path)
    names: list[Path] = []
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        folders = (path / ENGINES, *(path / name for name in TOKENIZERS))
        names = [path / MANIFEST, *(each for folder in folders for each in folder.rglob("*") if each.is_file())]
    files = {relative(path, name): ray.put(name.read_bytes()) for name in names}
    return Shipment(path, file_entry(path / MANIFEST).sha256, files)


def fetch(shipment: Shipment) -> Path:
    """Return where the bundle is on this node: where it was, or in the cache folder, written by the first who asks.

    Its digests are checked when a pipeline opens it.
    """
    if _is(shipment.path, shipment.digest):
        return shipment.path
    place = cache_folder() / "bundles" / shipment.digest
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not _is(place, shipment.digest):
            unfinished = place.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            for name, reference in shipment.files.items():
                file = inside(unfinished, name, _FIX)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(ray.get(reference))
            shutil.rmtree(place, ignore_errors=True)
            unfinished.rename(place)
    return place


def fitting_nodes(shipment: Shipment, target: str | None, cpus: float, gpus: float) -> list[str]:
    """Return the ids of the nodes that can draw a bundle, and log of each other why it cannot.

    Raises TargetError if there is none.
    """
    probe = ray.remote(num_cpus=0, num_gpus=gpus)(_problem)
    asked = {}
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeID"]] = probe.options(scheduling_strategy=strategy).remote(shipment, target)
    problems = {node: ray.get(answer) for node, answer in asked.items()}
    for problem in filter(None, problems.values()):
        _log.warning("not used: %s", problem)
    fitting = [node for node, problem in problems.items() if problem is None]
    if not fitting:
        raise TargetError(
            str(shipment.path),
            expected=f"a node with {cpus:g} processors, {gpus:g} GPUs and engines that fit it",
            found="; ".join(filter(None, problems.values())) or "none that is large enough",
            fix="build engines for the nodes' GPUs, or ask for less of each node",
        )
    return fitting


def _problem(shipment: Shipment, target: str | None) -> str | None:
    """Say why this node cannot draw a bundle; None if it can."""
    from koala_runtime.selection import open_engines

    try:
        open_engines(fetch(shipment), target)
    except KoalaError as error:
        return f"node {socket.gethostname()}: {error}"
    return None


def _is(path: Path, digest: str) -> bool:
    manifest = path / MANIFEST
    return manifest.is_file() and file_entry(manifest).sha256 == digest
