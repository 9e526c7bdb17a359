"""Train koala-tiny from nothing: ``python examples/koala-tiny/train.py``.

With ``--preview-decoder`` trains the preview decoder alone, in minutes, from the VAE of the checkpoint that is here.
Three to four hours on two CPU cores. Stop it when you like (Ctrl-C); the same command resumes. Its state
and contact sheets are under ``build/koala-tiny``; at the end the checkpoint is written next to this file.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from koala_tiny.autoencoder import train_vae
from koala_tiny.checkpoint import save_checkpoint
from koala_tiny.data import load_latents
from koala_tiny.denoiser import train_denoiser
from koala_tiny.models import SCHEDULER
from koala_tiny.preview import train_tiny_vae
from koala_tiny.scenes import random_request, words
from koala_tiny.tokenizer import merges_of_prompts

HERE = Path(__file__).resolve().parent
PICTURES = 20 * 4096  # what the U-Net learns from, each about sixteen times


def main() -> None:
    """Train both stages and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("build/koala-tiny"), help="where to keep what is not done")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoint", help="where to write the checkpoint")
    parser.add_argument("--share", type=float, default=1.0, help="a share of all steps and pictures, to try it out")
    parser.add_argument("--preview-decoder", action="store_true", help="train the preview decoder alone")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    if arguments.preview_decoder:
        train_preview_decoder(load_vae(arguments.output), arguments.output.parent, arguments.state, arguments.share)
        return
    # Euler's sigmas are numpy arrays, which diffusers hands to torch in a way that numpy 2 warns of.
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)

    vae = train_vae(arguments.state, arguments.share)
    latents = load_latents(vae, arguments.state / "latents", round(PICTURES * arguments.share))

    def save(models: dict[str, Any], folder: Path) -> Path:
        from diffusers import EulerDiscreteScheduler

        copies = {name: copy.deepcopy(model) for name, model in {**models, "vae": vae}.items()}
        scheduler = EulerDiscreteScheduler(**SCHEDULER)
        return save_checkpoint(folder, merges_of_prompts(), fp16=True, scheduler=scheduler, **copies)

    def look(step: int, models: dict[str, Any]) -> None:
        folder = save(models, arguments.state / "so-far")
        contact_sheet(folder).save(arguments.state / f"sheet-{step:06d}.png")

    models = train_denoiser(latents, arguments.state, look, arguments.share)
    print(f"wrote {save(models, arguments.output)}")
    train_preview_decoder(load_vae(arguments.output), arguments.output.parent, arguments.state, arguments.share)


def load_vae(checkpoint: Path) -> Any:
    """Return the VAE of a checkpoint, float32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(checkpoint / "vae", variant="fp16", dtype=torch.float32).eval()


def train_preview_decoder(vae: Any, folder: Path, state: Path, share: float) -> None:
    """Train the preview decoder and write it to ``folder``, float16."""
    written = folder / "preview-decoder"
    train_tiny_vae(vae, state, share).half().save_pretrained(written, variant="fp16")
    print(f"wrote {written}")


def contact_sheet(folder: Path, columns: int = 8, rows: int = 4) -> Image.Image:
    """Draw random prompts with diffusers, ten steps and guidance 2, always the same ones."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, variant="fp16", dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    rng = Random("sheet")
    prompts = [words(random_request(rng, things=1 + i % 2)) for i in range(columns * rows)]
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 10, "guidance_scale": 2.0, "height": 128, "width": 128}
    pictures = [np.asarray(p) for p in pipeline(prompts, generator=generator, **settings).images]
    lines = [np.concatenate(pictures[start : start + columns], 1) for start in range(0, len(pictures), columns)]
    return Image.fromarray(np.concatenate(lines, 0))


if __name__ == "__main__":
    main()
