"""Verifies that a bundle computes what its checkpoint computes, by component and by picture.

The reference is PyTorch in float32 with the checkpoint's own weights: the traced modules, and diffusers'
StableDiffusionXLPipeline. Compared with it are the ONNX files in ONNX Runtime, and the engines of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest, read_manifest
from koala_bundle.progress import Report, no_report
from koala_bundle.tensors import Component, components
from koala_export.checkpoint import Checkpoint
from koala_export.gate import gate_inputs, run_torch
from koala_export.modules import build_module
from koala_runtime import Pipeline
from koala_verify.comparison import OutputComparison, Verification, compare_output, compare_picture
from koala_verify.perceptual import open_clip_score, open_lpips
from koala_verify.reference import draw_reference, open_checkpoint, open_models
from koala_verify.single import entries_for, run_engines, run_onnx_files

PROMPTS = (
    "a large red circle on a white background",
    "a small blue star left of a green ring on a black background",
    "a photo of a koala asleep in a eucalyptus tree",
)
"""Fixed, so that pictures of two versions can be compared. koala-tiny was trained on prompts like the first two."""


def verify(
    bundle: Path,
    source: str,
    target: str | None = None,
    seeds: int = 1,
    report: Report = no_report,
    device: int | str | None = None,
    embeddings: Sequence[Path] = (),
    loras: Sequence[str] = (),
) -> Verification:
    """Compare ``bundle`` with the checkpoint ``source`` that it was exported from, with the same ``embeddings``
    and ``loras``.

    ``target`` names the engines; None takes the best that run here. ``device`` is the index or UUID of a GPU. Draws
    ``seeds`` pictures of each prompt, and of one for each learned word. Differences are in the result. Raises
    InputError for wrong arguments.
    """
    manifest = read_manifest(bundle)
    checkpoint = open_checkpoint(source, manifest, embeddings, loras)
    models = open_models(checkpoint, manifest)
    if seeds < 1:
        raise ArgumentError("seeds", expected="1 or more", found=str(seeds), fix="pass a number of pictures")
    precision = manifest.profile.precision
    with Pipeline(bundle, target, device=device) as pipe:
        outputs: list[OutputComparison] = []
        for component in components(manifest.spec, manifest.profile):
            report(f"{component.name}: PyTorch, ONNX and {pipe.target}")
            outputs += _compare_component(bundle, manifest, component, models, pipe)
        report("pictures: PyTorch")
        prompts = (*PROMPTS, *dict.fromkeys(f"a picture of {word.text}" for word in checkpoint.words))
        cases = [(prompt, seed) for prompt in prompts for seed in range(seeds)]
        references = draw_reference(checkpoint, manifest, cases)
        report(f"pictures: {pipe.target}")
        drawn = [np.asarray(pipe(prompt, seed=seed).images[0]) for prompt, seed in cases]
        target_name = pipe.target.name
    lpips, clip_score = open_lpips(), open_clip_score()
    pictures = []
    for (prompt, seed), reference, picture in zip(cases, references, drawn, strict=True):
        distance = None if isinstance(lpips, str) else lpips(reference, picture)
        scores = None if isinstance(clip_score, str) else (clip_score(reference, prompt), clip_score(picture, prompt))
        pictures.append(compare_picture(prompt, seed, reference, picture, distance, scores, precision))
    metrics = {"LPIPS": lpips, "CLIP score": clip_score}
    return Verification(
        bundle=str(bundle),
        checkpoint=source,
        target=target_name,
        profile=manifest.profile,
        outputs=tuple(outputs),
        pictures=tuple(pictures),
        pairs=tuple(zip(references, drawn, strict=True)),
        skipped={name: reason for name, reason in metrics.items() if isinstance(reason, str)},
    )


def _compare_component(
    bundle: Path, manifest: Manifest, component: Component, checkpoint: Checkpoint, pipe: Pipeline
) -> list[OutputComparison]:
    """Compare a traced component with the entries that compute it; passes may have split it."""
    entries = entries_for(manifest, component)
    inputs = gate_inputs(component)
    results = {
        "onnx": run_onnx_files(bundle, entries, inputs),
        pipe.target.name: run_engines(pipe.executor, manifest, entries, inputs),
    }
    module = build_module(component.name, checkpoint, manifest.spec, manifest.profile, manifest.passes)
    reference = run_torch(module, component, inputs)
    precision = manifest.profile.precision
    return [
        compare_output(component.name, tensor, runner, reference[tensor.name], outputs[tensor.name], precision)
        for runner, outputs in results.items()
        for tensor in component.outputs
    ]
