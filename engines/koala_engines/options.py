"""The choices of a build: one set for all compilers, each of which reads what applies to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildOptions:
    """``compute_capabilities`` as in "8.9" (rtx only; empty: its portable list, or Turing's where the GPU is one).

    ``optimization_level`` is 0 to 5, None for TensorRT's own default. ``strict``: a fusion or float16 that got lost is
    an error instead of a warning. ``tune``, if not 0, searches longest (level 5, tiling), builds the denoiser and the
    VAE decoder that many times and keeps the fastest build of each; what compiles for no GPU ignores it. ``device`` is
    the index or UUID of the GPU to build on and for; None takes the first.
    """

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    strict: bool = False
    tune: int = 0
    device: int | str | None = None
