"""Full-size KOALA-Lightning, random weights in the layout of the real repositories: export, rtx plans, one step.

Prints the seconds and the peak memory of each command, run as a process of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from koala_bundle.engine_record import read_engine_record
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import RTX
from koala_runtime.budget import budget
from tests.support.checkpoints import save_full_size

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
EXPORT_MEMORY = 8e9  # bytes
PLANS = {f"{name}.plan" for name in ("text_encoder", "text_encoder_2", "prologue", "denoiser", "vae_decoder")}


def run_measured(*arguments: str) -> tuple[float, float]:
    """Run ``koala`` in a process of its own; return seconds and peak resident memory in bytes."""
    # VmHWM and not getrusage: the latter starts at what this process, which forks it, holds.
    program = (
        "import pathlib, sys; from koala_cli.main import run_app; code = run_app(sys.argv[1:]); "
        "print(pathlib.Path('/proc/self/status').read_text()); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert match is not None
    peak = float(match[1]) * 1024
    print(f"\nkoala {arguments[0]} {' '.join(arguments[3:])}: {seconds:.0f} s, {peak / 1e9:.1f} GB\n{done.stderr}")
    return seconds, peak


@pytest.fixture(scope="module", params=["koala-lightning-700m", "koala-lightning-1b"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Checkpoint and bundle folders of a preset, removed afterwards: they take 10 GB and more."""
    import shutil

    root = tmp_path_factory.mktemp(request.param)
    yield save_full_size(request.param, root / "checkpoint"), root / "bundle"
    shutil.rmtree(root)


def test_export_fits_in_8_gb(folders: tuple[Path, Path]) -> None:
    checkpoint, bundle = folders
    options = ("--steps", "10", "--guidance-scale", "3.5", "--timestep-spacing", "trailing", "--no-gate")
    _, peak = run_measured("export", str(checkpoint), str(bundle), *options)
    assert peak < EXPORT_MEMORY


def test_rtx_plans_build_without_a_gpu(folders: tuple[Path, Path]) -> None:
    _, bundle = folders
    run_measured("engines", str(bundle), "--target", "rtx")
    plans = {path.name: path.stat().st_size for path in (bundle / "engines" / "rtx").glob("*.plan")}
    print(plans)
    assert set(plans) == PLANS
    step = read_engine_record(bundle, RTX).plans["denoiser"].kernels
    graph = next(entry.counts for entry in read_manifest(bundle).components if entry.name == "denoiser")
    print(sum(step.values()), step)
    small = "700m" in bundle.parent.name
    assert sum(times for name, times in step.items() if "mha" in name) == graph.attentions == (42 if small else 60)
    # Group norms with or without SiLU, and layer norms: one kernel each.
    assert sum(times for name, times in step.items() if "Gnor" in name or "MeanSub" in name) == graph.norms
    assert sum(step.values()) <= (180 if small else 245)
    if small:
        assert plans["denoiser.plan"] <= 1.36e9
    needed = budget(read_manifest(bundle), read_engine_record(bundle, RTX))
    print(needed, needed.total(), needed.total(low_memory=True))
    assert None not in needed.activations.values()
    assert needed.total() < (5e9 if small else 6e9)  # PyTorch took 8.3 and 9.1 GB (arXiv 2312.04005)
    assert needed.total(low_memory=True) < 2.5e9


def test_operations_are_those_that_torch_counts(folders: tuple[Path, Path]) -> None:
    """The modules on torch's meta device, which computes nothing; attention as its two products."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    checkpoint, bundle = folders
    traced = read_manifest(bundle).traced
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(checkpoint / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint / "vae"))
        conditions = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
        hidden = torch.empty(2, 77, 2048)
        with FlopCounterMode(display=False) as counter:
            unet(torch.empty(2, 4, 128, 128), 1, encoder_hidden_states=hidden, added_cond_kwargs=conditions)
        assert traced["denoiser"].flops == pytest.approx(counter.get_total_flops(), rel=0.01)
        with FlopCounterMode(display=False) as counter:
            vae.decode(torch.empty(1, 4, 128, 128))
        assert traced["vae_decoder"].flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    print({name: f"{counts.flops / 1e12:.3f} TFLOP" for name, counts in traced.items()})


def test_one_step_matches_diffusers(folders: tuple[Path, Path]) -> None:
    """At 1024 px with guidance, from the same fp16 weights, computed in float32 on both sides.

    The 1B's comparison is left out for its time, five minutes of CI's ninety; a small U-Net of its shape is compared in
    ``test_parity``.
    """
    checkpoint, bundle = folders
    if "1b" in bundle.parent.name:
        pytest.skip("takes five minutes; a small U-Net of this shape is compared in test_parity")
    run_measured("engines", str(bundle), "--target", "cpu")
    import torch
    from diffusers import StableDiffusionXLPipeline

    from koala_runtime import Pipeline

    prompt, negative = "a koala asleep in a eucalyptus tree", "worst quality, low quality"
    with Pipeline(bundle) as pipeline:
        started = time.monotonic()
        got = pipeline(prompt, negative_prompt=negative, num_inference_steps=1, seed=0, output_type="np").images
        print(f"\nours: {time.monotonic() - started:.0f} s")
    reference = StableDiffusionXLPipeline.from_pretrained(
        checkpoint, variant="fp16", dtype=torch.float32, add_watermarker=False
    )
    reference.scheduler = type(reference.scheduler).from_config(reference.scheduler.config, timestep_spacing="trailing")
    reference.set_progress_bar_config(disable=True)
    started = time.monotonic()
    wanted = reference(
        prompt,
        negative_prompt=negative,
        num_inference_steps=1,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    print(f"diffusers: {time.monotonic() - started:.0f} s")
    assert wanted.std() > 0.01
    worst = float(np.abs(wanted - got).max())
    print(f"largest difference {worst * 255:.2f}/255")
    assert worst <= 2 / 255
