"""Plans in, pictures out; this is the package that products embed.

- ``pipeline``: the call itself, spelled as in diffusers
- ``prompts``, ``noise``, ``schedule``: what the host prepares for a picture
- ``loop``: the picture as calls in order, and where its tensors lie; ``executor``: runs it on a device
- ``stages``: what a device and a plan are; ``device`` and ``tensorrt``: a GPU's, ``host``: the processor's,
  ``simulated``: those of a GPU that is not there
- ``memory``: what a picture takes of a GPU, told before anything is loaded
- ``bundle``: choosing and checking the engines of a bundle
- ``contract``: what is shared with the exporter and the engine builders (standard library only)

Never imports torch, diffusers, transformers or onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koala_runtime.pipeline import Pipeline, PipelineOutput

__all__ = ["Pipeline", "PipelineOutput"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late, so that the exporter and the command line can use the contract without loading the runtime's libraries.
    if name in __all__:
        from koala_runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
