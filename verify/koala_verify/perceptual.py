"""Metrics that need a neural network. Packages and weights are used if they are installed; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from koala_bundle.errors import first_line
from koala_verify.pixels import Pixels

CLIP = "openai/clip-vit-base-patch16"
"""The default model of CLIPScore in torchmetrics."""
_ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's weights of lpips' default backbone


def open_lpips() -> Callable[[Pixels, Pixels], float] | str:
    """Return LPIPS (Zhang et al., arXiv 1801.03924; AlexNet, 0 for equal pictures), or why it is not available."""
    try:
        import lpips
        import torch
    except (ImportError, RuntimeError) as error:
        return f"the package lpips cannot be imported ({first_line(error)})"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET
    if not weights.is_file():
        return f"its backbone's weights are not at {weights}"
    network: Any = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.no_grad()
    def distance(reference: Pixels, picture: Pixels) -> float:
        pair = torch.from_numpy(np.stack([reference, picture])).permute(0, 3, 1, 2) / 127.5 - 1
        return float(network(pair[:1], pair[1:]))

    return distance


def open_clip_score() -> Callable[[Pixels, str], float] | str:
    """Return CLIPScore (Hessel et al., arXiv 2104.08718, without its factor of 2.5), or why it is not available.

    100 times the cosine between a picture and its prompt, at least 0.
    """
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        model: Any = CLIPModel.from_pretrained(CLIP, local_files_only=True).eval()
        processor: Any = CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    except (OSError, ValueError):
        return f"{CLIP} is not in the hub's cache; `hf download {CLIP}` downloads it"

    @torch.no_grad()
    def score(picture: Pixels, prompt: str) -> float:
        inputs = processor(text=[prompt], images=[picture], return_tensors="pt", padding=True, truncation=True)
        outputs = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        return max(0.0, 100 * float(cosine))

    return score
