"""A bundle, written whole: every component, the tokenizers and the manifest, then one rename.

An export that is killed keeps its finished components and goes on after them; one that fails leaves nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from koala_bundle.codec import from_json, to_json
from koala_bundle.counts import Counts
from koala_bundle.errors import ArgumentError, BundleError, KoalaError
from koala_bundle.files import FileEntry, Staging, prepare_output, require_space, write_json
from koala_bundle.manifest import MANIFEST, SCHEMA_VERSION, TOKENIZERS, ComponentEntry, Manifest, Origin, read_manifest
from koala_bundle.progress import Report, no_report
from koala_bundle.spec import (
    PASSES,
    TIMESTEP_SPACINGS,
    ModelSpec,
    Profile,
    Sampling,
    check_profile,
    check_sampling,
)
from koala_bundle.tensors import Component, components
from koala_export.checkpoint import Checkpoint
from koala_export.configs import native_size, read_spec
from koala_export.passes import choose_passes
from koala_export.source import open_source

# diffusers' own defaults of StableDiffusionXLPipeline.__call__, for a checkpoint that recommends nothing.
DIFFUSERS_DEFAULTS = Sampling(num_inference_steps=50, guidance_scale=5.0)
_TOOLS = ("koala-trt", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class ExportOptions:
    """What the command line offers. None: as the model card or the checkpoint says."""

    height: int | None = None
    width: int | None = None
    batch: int = 1
    precision: str = "fp16"
    cfg: bool | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    timestep_spacing: str | None = None
    random_weights: bool = False
    gate: bool = True
    without: tuple[str, ...] = ()


def options_of(manifest: Manifest) -> ExportOptions:
    """Return the options that export a bundle like this one again."""
    profile, sampling = manifest.profile, manifest.sampling
    return ExportOptions(
        height=profile.height,
        width=profile.width,
        batch=profile.batch,
        precision=profile.precision,
        cfg=profile.cfg,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        timestep_spacing=manifest.spec.scheduler.timestep_spacing,
        gate=manifest.gate == "passed",
        without=tuple(name for name in PASSES if name not in manifest.passes),
    )


def export_bundle(source: str, bundle: Path, options: ExportOptions | None = None, report: Report = no_report) -> bool:
    """Export ``source`` to the folder ``bundle``; False if it was there already, made from the same.

    ``report`` gets a line per piece of work. Raises InputError for what the caller can fix, GateError and BuildError
    if a component does not convert; the bundle is then absent or as it was.
    """
    options = options or ExportOptions()
    checkpoint = open_source(source, random_weights=options.random_weights, precision=options.precision)
    spec, profile, sampling = _resolve(checkpoint, options)
    origin = Origin(checkpoint.digest(), {tool: version(tool) for tool in _TOOLS})
    gate = "passed" if options.gate else "skipped"
    passes = choose_passes(options.without)
    manifest = Manifest(SCHEMA_VERSION, origin, gate, spec, profile, sampling, passes, {}, (), {})
    with prepare_output(bundle, FileLock):
        reasons = _changes(bundle, manifest)
        if not reasons:
            return False
        report(f"exporting: {'; '.join(reasons)}")
        key = hashlib.sha256(json.dumps(to_json(manifest), sort_keys=True).encode()).hexdigest()
        staging = Staging(bundle, key)
        try:
            _write(staging, checkpoint, manifest, options.gate, report)
        except (KoalaError, OSError):
            staging.discard()
            raise
        staging.commit()
    return True


def _resolve(checkpoint: Checkpoint, options: ExportOptions) -> tuple[ModelSpec, Profile, Sampling]:
    """Decide what is compiled: flags first, then the model card, then the checkpoint's own files."""
    spec = read_spec(checkpoint.configs)
    preset = checkpoint.preset
    spacing = options.timestep_spacing or (preset.timestep_spacing if preset else spec.scheduler.timestep_spacing)
    if spacing not in TIMESTEP_SPACINGS:
        raise ArgumentError(
            "timestep_spacing",
            expected=" or ".join(TIMESTEP_SPACINGS),
            found=repr(spacing),
            fix="pass trailing for KOALA-Lightning, leading for KOALA",
        )
    spec = replace(spec, scheduler=replace(spec.scheduler, timestep_spacing=spacing))
    default = Sampling(preset.num_inference_steps, preset.guidance_scale) if preset else DIFFUSERS_DEFAULTS
    guidance = default.guidance_scale if options.guidance_scale is None else options.guidance_scale
    steps = default.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
    check_sampling(steps, spec.scheduler.num_train_timesteps, guidance)
    cfg = guidance > 1 if options.cfg is None else options.cfg
    if not cfg and options.guidance_scale is not None and guidance > 1:
        raise ArgumentError(
            "guidance_scale",
            expected="1 or less where no guidance is compiled in",
            found=f"{guidance:g}",
            fix="leave the guidance out, or compile guidance in",
        )
    own = native_size(checkpoint.configs, spec)
    given = (options.height, options.width)
    height, width = (side if chosen is None else chosen for side, chosen in zip(own, given, strict=True))
    profile = Profile(height, width, options.batch, options.precision, cfg)
    check_profile(profile, spec)
    return spec, profile, Sampling(steps, guidance if cfg else min(guidance, 1.0))


def _changes(bundle: Path, wanted: Manifest) -> list[str]:
    """Return why ``bundle`` has to be written; empty if it holds what is wanted."""
    if not bundle.exists():
        return ["there is no bundle yet"]
    if bundle.is_dir() and not any(bundle.iterdir()):
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
            reasons.append(f"{name} changed")
    sizes = {path: bundle / path for path in old.files}
    if any(not path.is_file() or path.stat().st_size != old.files[name].size for name, path in sizes.items()):
        reasons.append("files are missing or cut short")
    return reasons


def _write(staging: Staging, checkpoint: Checkpoint, manifest: Manifest, gate: bool, report: Report) -> None:
    files: dict[str, FileEntry] = {}
    entries: list[ComponentEntry] = []
    traced: dict[str, Counts] = {}
    paths = []  # first, because they are quick to be wrong
    for name in TOKENIZERS:
        path = staging.folder / name / "tokenizer.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(checkpoint.tokenizer(name))
        paths.append(path)
    files |= staging.finish("tokenizers", paths).files
    (staging.folder / "onnx").mkdir(exist_ok=True)
    for component in components(manifest.spec, manifest.profile):
        done = staging.finished(component.name)
        if done:
            report(f"{component.name}: finished before, kept")
        else:
            before, parts = _export_component(component, staging.folder / "onnx", checkpoint, manifest, gate, report)
            paths = [staging.folder / name for part in parts for name in part.files]
            facts = {"before": json.dumps(to_json(before)), "parts": json.dumps(to_json(parts))}
            done = staging.finish(component.name, paths, **facts)
        traced[component.name] = from_json(Counts, json.loads(done.facts["before"]))
        entries += [from_json(ComponentEntry, part) for part in json.loads(done.facts["parts"])]
        files |= done.files
    write_json(staging.folder / MANIFEST, replace(manifest, traced=traced, components=tuple(entries), files=files))


def _export_component(
    component: Component, folder: Path, checkpoint: Checkpoint, manifest: Manifest, gate: bool, report: Report
) -> tuple[Counts, list[ComponentEntry]]:
    """Trace a component and write what the passes make of it: itself, or several that compute the same in turn."""
    from koala_export.counts import count
    from koala_export.gate import check_component
    from koala_export.modules import build_module
    from koala_export.passes import run_passes
    from koala_export.trace import save, trace

    report(f"{component.name}: loading")
    module = build_module(component.name, checkpoint, manifest.spec, manifest.profile, manifest.passes, report)
    require_space(folder, sum(value.nbytes for value in module.state_dict().values()))
    report(f"{component.name}: tracing")
    with torch.no_grad():
        model = trace(module, component)
    before, entries = count(model), []
    for part, graph in run_passes(component, model, manifest.passes, report):
        files = tuple(f"onnx/{path.name}" for path in save(graph, part, folder))
        entries.append(ComponentEntry(part.name, part.inputs, part.outputs, part.steps, files, count(graph)))
    del model, graph
    if gate:
        report(f"{component.name}: comparing with PyTorch")
        parts = [(entry, folder.parent / entry.files[0]) for entry in entries]
        for output, agreement in check_component(module, component, parts, manifest.profile.precision).items():
            report(f"{component.name}: {output} agrees with PyTorch ({agreement})")
    return before, entries
