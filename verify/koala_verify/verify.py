"""Does a bundle compute what its checkpoint computes? Component by component, then picture by picture.

The reference is PyTorch in float32 with the checkpoint's own weights: the modules that were traced, and diffusers'
StableDiffusionXLPipeline. Beside it: the ONNX files as they are, in ONNX Runtime, and the plans of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import ComponentEntry, Manifest, read_manifest
from koala_bundle.progress import Report, no_report
from koala_bundle.spec import Profile
from koala_bundle.tensors import Component, IOTensor, components
from koala_export.checkpoint import FolderCheckpoint
from koala_export.gate import Agreement, Array, accepted, compare, gate_inputs, run_onnx, run_torch
from koala_export.modules import build_module
from koala_export.source import open_source
from koala_runtime import Pipeline
from koala_runtime.executor import Executor, Run
from koala_runtime.program import make_program
from koala_verify.likeness import open_clip_score, open_lpips
from koala_verify.pixels import Pixels, psnr
from koala_verify.reference import open_diffusers

PROMPTS = (
    "a large red circle on a white background",
    "a small blue star left of a green ring on a black background",
    "a photo of a koala asleep in a eucalyptus tree",
)
"""Fixed, so that pictures of two versions can be compared; the first two mean something to koala-tiny."""

LEAST_PSNR = {"fp32": 40.0, "fp16": 25.0}
"""Decibels of a picture against the reference; see docs/verify.md."""

LARGEST_PIXEL = 2 / 255  # of an fp32 bundle's picture, of any pixel


@dataclass(frozen=True)
class Output:
    """One output of a component, as ``runner`` (``onnx``, or a target) computed it.

    ``error`` is the largest difference over the reference's largest value, ``psnr`` in decibels of that value.
    """

    component: str
    tensor: str
    runner: str
    error: float
    cosine: float
    psnr: float
    not_finite: int
    passed: bool


@dataclass(frozen=True)
class Picture:
    """One picture: ``largest`` difference of any pixel (0 to 1), PSNR in decibels, SSIM (Wang et al. 2004).

    ``lpips`` and the ``clip_scores`` of the reference and ours are None where they cannot be had.
    """

    prompt: str
    seed: int
    largest: float
    psnr: float
    ssim: float
    lpips: float | None
    clip_scores: tuple[float, float] | None
    passed: bool


@dataclass(frozen=True)
class Findings:
    """Everything that ``verify`` found; ``pairs`` are the reference and ours for each of ``pictures``.

    ``left_out`` says by figure why it is not there.
    """

    bundle: str
    checkpoint: str
    target: str
    profile: Profile
    outputs: tuple[Output, ...]
    pictures: tuple[Picture, ...]
    pairs: tuple[tuple[Pixels, Pixels], ...]
    left_out: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether everything is within its bounds."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What is not, in words: components first, because a wrong component makes wrong pictures."""
        parts = [f"{o.component}: {o.tensor} ({o.runner})" for o in self.outputs if not o.passed]
        return parts + [f"picture {p.prompt!r}, seed {p.seed}" for p in self.pictures if not p.passed]


def verify(
    bundle: Path, source: str, target: str | None = None, seeds: int = 1, report: Report = no_report
) -> Findings:
    """Compare ``bundle`` with the checkpoint ``source`` that it was exported from, and with the plans of ``target``.

    Raises InputError for what the caller can fix. A difference is no error: it is in the findings.
    """
    manifest = read_manifest(bundle)
    checkpoint = open_source(source, random_weights=False, precision=manifest.profile.precision)
    if not isinstance(checkpoint, FolderCheckpoint) or checkpoint.digest() != manifest.origin.checkpoint:
        raise ArgumentError(
            "source",
            expected="the checkpoint that the bundle was made from",
            found="another one",
            fix="pass the folder or hub name that `koala export` was given",
        )
    if seeds < 1:
        raise ArgumentError("seeds", expected="1 or more", found=str(seeds), fix="pass a number of pictures")
    with Pipeline(bundle, target) as pipe:
        outputs: list[Output] = []
        for component in components(manifest.spec, manifest.profile):
            report(f"{component.name}: PyTorch, ONNX and {pipe.target}")
            outputs += _component(bundle, manifest, component, checkpoint, pipe)
        report("pictures: PyTorch")
        wanted = _reference_pictures(checkpoint, manifest, seeds)
        report(f"pictures: {pipe.target}")
        ours = [np.asarray(pipe(prompt, seed=seed).images[0]) for prompt, seed in wanted]
        ran = pipe.target.name
    pairs = tuple(zip(wanted.values(), ours, strict=True))
    lpips, clip_score = open_lpips(), open_clip_score()
    pictures = []
    for (prompt, seed), (reference, picture) in zip(wanted, pairs, strict=True):
        distance = None if isinstance(lpips, str) else lpips(reference, picture)
        scores = None if isinstance(clip_score, str) else (clip_score(reference, prompt), clip_score(picture, prompt))
        pictures.append(_picture(prompt, seed, reference, picture, distance, scores, manifest.profile.precision))
    return Findings(
        bundle=str(bundle),
        checkpoint=source,
        target=ran,
        profile=manifest.profile,
        outputs=tuple(outputs),
        pictures=tuple(pictures),
        pairs=pairs,
        left_out={name: why for name, why in (("LPIPS", lpips), ("CLIP score", clip_score)) if isinstance(why, str)},
    )


def _component(
    bundle: Path, manifest: Manifest, component: Component, checkpoint: FolderCheckpoint, pipe: Pipeline
) -> list[Output]:
    """Compare what a traced component became; that may be several that run in turn."""
    parts = _parts(manifest, component)
    inputs = gate_inputs(component)
    results = {
        "onnx": run_onnx([(part, bundle / part.files[0]) for part in parts], inputs),
        pipe.target.name: _run_plans(pipe.executor, manifest, parts, inputs),
    }
    module = build_module(component.name, checkpoint, manifest.spec, manifest.profile, manifest.passes)
    reference = run_torch(module, component, inputs)
    return [
        _output(component.name, tensor, runner, reference[tensor.name], known[tensor.name], manifest.profile.precision)
        for runner, known in results.items()
        for tensor in component.outputs
    ]


def _parts(manifest: Manifest, component: Component) -> list[ComponentEntry]:
    """Return the entries of the bundle that compute ``component``: what passes took out of it, then what is left."""
    last = manifest.component(component.name)
    needed = {tensor.name for tensor in last.inputs}
    made = (e for e in manifest.components if e.name not in manifest.traced)  # by passes
    return [*(e for e in made if needed & {tensor.name for tensor in e.outputs}), last]


def _run_plans(
    executor: Executor, manifest: Manifest, parts: Sequence[ComponentEntry], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the outputs of the last part's plan, after the plans of all have run on the device in turn."""
    with executor.device.current():
        run = Run(executor, make_program(manifest.components, 1, half=executor.half))
        try:
            calls = {call.component: call for call in run.program.calls}
            for part in parts:
                call = calls[part.name]
                for tensor in part.inputs:
                    if tensor.name in inputs:
                        place = call.tensors[tensor.name]
                        run.write(place, _as_held(inputs[tensor.name], part, tensor, place.shape, place.dtype))
                run.compute(call)
            last = calls[parts[-1].name]
            return {tensor.name: run.read(last.tensors[tensor.name]) for tensor in parts[-1].outputs}
        finally:
            run.close()


def _as_held(value: Array, part: Component, tensor: IOTensor, shape: tuple[int, ...], dtype: str) -> Array:
    """Return ``value`` as the block holds it; of a table for many steps, it is the first row."""
    if not (part.steps and tensor.per_step):
        return value.astype(dtype)
    table = np.zeros(shape, dtype)
    table[0, : value.size] = value.ravel()
    return table


def _output(component: str, tensor: IOTensor, runner: str, reference: Array, result: Array, precision: str) -> Output:
    agreement: Agreement = compare(reference, result)
    not_finite = int(np.size(result) - np.isfinite(result.astype(np.float32)).sum())
    return Output(
        component,
        tensor.name,
        runner,
        agreement.error,
        agreement.cosine,
        psnr(reference, result, float(np.abs(reference.astype(np.float64)).max()) or 1.0),
        not_finite,
        accepted(agreement, tensor, precision) and not not_finite,
    )


def _picture(
    prompt: str,
    seed: int,
    reference: Pixels,
    ours: Pixels,
    lpips: float | None,
    clip_scores: tuple[float, float] | None,
    precision: str,
) -> Picture:
    from skimage.metrics import structural_similarity

    largest = float(np.abs(reference.astype(int) - ours.astype(int)).max()) / 255
    decibels = psnr(reference, ours, 255.0)
    similar = float(structural_similarity(reference, ours, channel_axis=-1))
    within = precision == "fp16" or largest <= LARGEST_PIXEL
    passed = within and decibels >= LEAST_PSNR[precision]
    return Picture(prompt, seed, largest, decibels, similar, lpips, clip_scores, passed)


def _reference_pictures(checkpoint: FolderCheckpoint, manifest: Manifest, seeds: int) -> dict[tuple[str, int], Pixels]:
    """Draw with diffusers, float32, one prompt at a time, by prompt and seed."""
    import torch

    pipe = open_diffusers(checkpoint, manifest, torch.float32)
    profile, sampling = manifest.profile, manifest.sampling
    pictures = {}
    for prompt in PROMPTS:
        for seed in range(seeds):
            image = pipe(
                prompt,
                height=profile.height,
                width=profile.width,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
            ).images[0]
            pictures[prompt, seed] = np.asarray(image)
    return pictures
