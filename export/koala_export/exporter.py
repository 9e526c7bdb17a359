"""Exports a checkpoint to a bundle: every component, the tokenizers and the manifest, then one rename.

An export that is killed keeps its finished components, and the next one resumes after them; one that fails leaves
nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from koala_bundle.codec import from_json, to_json
from koala_bundle.engine_record import ENGINES
from koala_bundle.errors import BundleError, KoalaError
from koala_bundle.files import FileEntry, require_space, write_sealed
from koala_bundle.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    TOKENIZERS,
    ComponentEntry,
    Manifest,
    Origin,
    read_manifest,
)
from koala_bundle.progress import Report, no_report
from koala_bundle.swap import Staging, prepare_output, real_path, whole
from koala_bundle.tensors import Component, components
from koala_export.checkpoint import Checkpoint
from koala_export.configs import PREVIEW_DECODER
from koala_export.options import ExportOptions, choose_passes, resolve
from koala_export.other_models import open_others, with_others
from koala_export.reuse import Earlier, Exported, component_key, keep_engines, share_files, take_over
from koala_export.source import open_source

_TOOLS = ("koala-trt", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


def export_bundle(
    source: str,
    bundle: Path,
    options: ExportOptions | None = None,
    report: Report = no_report,
    base: Path | None = None,
) -> bool:
    """Export ``source`` to the folder ``bundle``. Returns False, and does nothing, if the bundle is up to date.

    Components that are the same in the bundle that is there, or in the bundle ``base``, are links to its files, or
    copies where there are no links; so are the engines of ``base``, if the bundle has none yet. ``report`` gets a line
    of progress at a time. Raises InputError for what the caller can fix, GateError and BuildError if a component does
    not convert; the bundle is then absent or as it was.
    """
    options, bundle = options or ExportOptions(), real_path(bundle)
    checkpoint = open_source(
        source,
        random_weights=options.random_weights,
        precision=options.precision,
        embeddings=options.embeddings,
        loras=options.loras,
    )
    others = open_others({"vae": options.vae, PREVIEW_DECODER: options.preview_decoder}, options.precision)
    origin = Origin(
        checkpoint.digest(),
        {tool: version(tool) for tool in _TOOLS},
        tuple(lora.entry for lora in checkpoint.loras),
        **{name: each.origin for name, each in others.items()},
    )
    checkpoint = with_others(checkpoint, others)
    spec, profile, sampling = resolve(checkpoint, options)
    gate = "passed" if options.gate else "skipped"
    passes = choose_passes(options.without)
    manifest = Manifest(SCHEMA_VERSION, origin, gate, spec, profile, sampling, passes, {}, (), (), {})
    bases = [] if base is None else [Earlier(whole(real_path(base)), read_manifest(base))]
    with prepare_output(bundle, FileLock):
        reasons = _changes(bundle, manifest)
        if not reasons:
            return False
        report(f"exporting: {'; '.join(reasons)}")
        key = hashlib.sha256(json.dumps(to_json(manifest), sort_keys=True).encode()).hexdigest()
        staging = Staging(bundle, key)
        try:
            checkpoint.check()
            earlier = [*_earlier(bundle), *bases]
            _write(staging, checkpoint, manifest, options.gate, report, earlier)
            homes = [bundle, *(each.bundle for each in bases)]
            keep_engines(next((home for home in homes if (home / ENGINES).is_dir()), bundle), staging.folder)
        except (KoalaError, OSError):
            staging.discard()
            raise
        staging.commit()
    return True


def _changes(bundle: Path, wanted: Manifest) -> list[str]:
    """Return why ``bundle`` has to be written; empty if it is up to date."""
    if not bundle.exists():
        return ["there is no bundle yet"]
    if bundle.is_dir() and all(path.name.startswith(".") or path.name == "lost+found" for path in bundle.iterdir()):
        return ["the folder is empty"]
    if not (bundle / MANIFEST).is_file():
        raise BundleError(
            str(bundle),
            expected="a bundle, or a path that is free",
            found="something else" if bundle.is_dir() else "a file",
            fix="choose another path; nothing was written",
        )
    try:
        old = read_manifest(bundle)
    except BundleError as error:
        return [str(error)]
    reasons = []
    for name in ("origin", "gate", "spec", "profile", "sampling", "passes"):
        before, now = getattr(old, name), getattr(wanted, name)
        if before != now and not (name == "gate" and before == "passed"):
            only_loras = name == "origin" and replace(old.origin, loras=wanted.origin.loras) == wanted.origin
            reasons.append(f"{'LoRA' if only_loras else name} changed")
    sizes = {path: bundle / path for path in old.files}
    if any(not path.is_file() or path.stat().st_size != old.files[name].size for name, path in sizes.items()):
        reasons.append("files are missing or cut short")
    return reasons


def _earlier(bundle: Path) -> list[Earlier]:
    """Return the bundle that is to be replaced, if there is one that can be read."""
    try:
        return [Earlier(bundle, read_manifest(bundle))]
    except BundleError:
        return []


def _write(
    staging: Staging,
    checkpoint: Checkpoint,
    manifest: Manifest,
    gate: bool,
    report: Report,
    earlier: Sequence[Earlier],
) -> None:
    files: dict[str, FileEntry] = {}
    exported: dict[str, Exported] = {}
    paths = []  # tokenizers first: they are quick, and often what is wrong
    for name in TOKENIZERS:
        path = staging.folder / name / "tokenizer.json"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # what a killed export left may be a link to another bundle's
        path.write_bytes(checkpoint.tokenizer(name))
        paths.append(path)
    files |= staging.finish("tokenizers", paths).files
    (staging.folder / "onnx").mkdir(exist_ok=True)
    for component in components(manifest.spec, manifest.profile):
        key = component_key(component.name, checkpoint, manifest)
        if staging.finished(component.name):
            report(f"{component.name}: finished before, kept")
        elif take_over(staging, component.name, key, gate, earlier):
            report(f"{component.name}: unchanged, kept")
        else:
            made = _export_component(component, staging.folder / "onnx", checkpoint, manifest, gate, report)
            made = replace(made, entries=tuple(replace(entry, key=key) for entry in made.entries))
            paths = [staging.folder / name for entry in made.entries for name in entry.files]
            staging.finish(component.name, paths, exported=json.dumps(to_json(made)))
        done = staging.finished(component.name)
        assert done is not None
        exported[component.name] = from_json(Exported, json.loads(done.facts["exported"]))
        files |= done.files
    share_files(staging.folder, files, earlier)
    manifest = replace(
        manifest,
        traced={name: each.traced for name, each in exported.items()},
        changes=tuple(change for each in exported.values() for change in each.changes),
        components=tuple(entry for each in exported.values() for entry in each.entries),
        files=files,
    )
    write_sealed(staging.folder / MANIFEST, manifest)


def _export_component(
    component: Component, folder: Path, checkpoint: Checkpoint, manifest: Manifest, gate: bool, report: Report
) -> Exported:
    """Trace a component and write what the passes make of it: itself, or several that compute the same in turn."""
    from koala_export.counts import count
    from koala_export.gate import check_component
    from koala_export.modules import build_module
    from koala_export.passes import run_passes
    from koala_export.passes.base import Part
    from koala_export.trace import save, trace

    report(f"{component.name}: loading")
    module = build_module(component.name, checkpoint, manifest.spec, manifest.profile, manifest.passes, report)
    require_space(folder, sum(value.nbytes for value in module.state_dict().values()))
    report(f"{component.name}: tracing")
    model = trace(module, component)
    traced, entries = count(model), []
    parts, changes = run_passes(Part(component, model), manifest.passes, report)
    for part, counts in parts:
        files = tuple(f"onnx/{path.name}" for path in save(part.model, part.component, folder))
        made = part.component
        entries.append(ComponentEntry(made.name, made.inputs, made.outputs, made.steps, files, counts))
    del model, parts, part  # the graphs hold the weights
    if gate:
        report(f"{component.name}: comparing with PyTorch")
        written = [(entry, folder.parent / entry.files[0]) for entry in entries]
        for output, agreement in check_component(module, component, written, manifest.profile.precision).items():
            report(f"{component.name}: {output} agrees with PyTorch ({agreement})")
    return Exported(traced, tuple(changes), tuple(entries))
