"""Components of bundles that were exported before: taken over, as links, where an export would write the same again.

A component's key is a digest of all that its graph and weights depend on. Files are compared with their digests before
they are trusted, and no file that may be another bundle's is ever written to: links are removed first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from koala_bundle.codec import to_json
from koala_bundle.counts import Counts
from koala_bundle.engine_record import ENGINES
from koala_bundle.errors import BundleError
from koala_bundle.files import FileEntry, file_entry, link
from koala_bundle.manifest import ComponentEntry, Manifest, PassChange
from koala_bundle.places import inside, refuse_link_out
from koala_bundle.swap import Staging
from koala_export.checkpoint import Checkpoint
from koala_export.lora import touched
from koala_export.modules import model_of

_AGAIN = "export it again"


@dataclass(frozen=True)
class Exported:
    """A component that was traced: its counts as traced, what the passes changed, and what they made of it."""

    traced: Counts
    changes: tuple[PassChange, ...]
    entries: tuple[ComponentEntry, ...]


@dataclass(frozen=True)
class Earlier:
    """A bundle that is there, and its manifest."""

    bundle: Path
    manifest: Manifest


def component_key(component: str, checkpoint: Checkpoint, manifest: Manifest) -> str:
    """Return a digest of what a component that is traced depends on: of the checkpoint, its own model and its LoRAs."""
    model = model_of(component)
    loras = [lora.entry for lora in touched(checkpoint.loras, model)]
    settings = (manifest.origin.tools, manifest.spec, manifest.profile, manifest.passes)
    parts = [component, checkpoint.model_digest(model), loras, *settings]
    return hashlib.sha256(json.dumps(to_json(parts), sort_keys=True).encode()).hexdigest()


def take_over(staging: Staging, component: str, key: str, gate: bool, earlier: Sequence[Earlier]) -> Exported | None:
    """Link the files of a component with this ``key`` into ``staging``, and record it as finished there.

    ``gate``: only one that was compared with PyTorch. None if no bundle has it, whole and undamaged.
    """
    for each in earlier:
        manifest = each.manifest
        entries = tuple(entry for entry in manifest.components if entry.key == key)
        if not entries or component not in manifest.traced or (gate and manifest.gate != "passed"):
            continue
        names = [name for entry in entries for name in entry.files]
        made = {component, *(entry.name for entry in entries)}
        changes = tuple(change for change in manifest.changes if change.component in made)
        exported = Exported(manifest.traced[component], changes, entries)
        paths = [staging.folder / name for name in names]
        try:
            for name, path in zip(names, paths, strict=True):
                link(inside(each.bundle, name, _AGAIN), path)
            done = staging.finish(component, paths, exported=json.dumps(to_json(exported)))
        except OSError:  # a file that is gone
            done = None
        if done is not None and done.files == {name: manifest.files[name] for name in names}:
            return exported
        for path in paths:
            path.unlink(missing_ok=True)
    return None


def share_files(folder: Path, files: dict[str, FileEntry], earlier: Sequence[Earlier]) -> None:
    """Replace files of a new bundle by links to those of earlier ones that have the same bytes."""
    for name, entry in files.items():
        for each in earlier:
            if each.manifest.files.get(name) != entry:
                continue
            old = inside(each.bundle, name, _AGAIN)
            if not old.is_file() or old.samefile(folder / name):
                break
            if file_entry(old) == entry:
                link(old, folder / name)
                break


def keep_engines(old: Path, new: Path) -> None:
    """Link the engines of another bundle: those whose graph is the same need not be built again.

    What is itself a link out of that bundle is left out.
    """
    for path in sorted((old / ENGINES).rglob("*")):
        place = path.relative_to(old)
        if path.is_file() and not any(part.startswith(".") for part in place.parts):
            with suppress(BundleError):
                refuse_link_out(path, old, "")
                (new / place.parent).mkdir(parents=True, exist_ok=True)
                link(path, new / place)
