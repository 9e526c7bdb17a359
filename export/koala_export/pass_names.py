"""The names of the passes, apart from the passes: the command lists them without loading onnx."""

from __future__ import annotations

PASSES = ("rescale", "chunk", "tokens", "hoist")
"""All that can be left out, in the order in which they run; ``rescale`` works before the trace, on the VAE."""
