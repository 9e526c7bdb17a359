"""Plans in, pictures out; this is the package that products embed.

- ``pipeline``: the call itself, spelled as in diffusers; ``steps``: the same as a loop of the caller's
- ``arguments``: what a call takes; ``request``: a call, checked: ``conditioning`` of it, ``seeds`` of its noise
- ``inputs``: the numbers it puts into a program; ``output``: what it returns
- ``prompts``, ``weighting``, ``noise``, ``samplers``: what the host computes for a picture; ``arrays``: the caller's
- ``program``: a picture as calls in order, and where its tensors lie; ``executor``: runs it on a device
- ``devices``: the processor, an NVIDIA GPU and a simulated one; ``opening``: makes an executor of one
- ``process``: refuses forked children and copies; ``finite``: finds the step after which latents are no numbers
- ``selection``: chooses and checks the engines of a bundle; ``budget``: the device memory that a picture takes
- ``recipe``: what draws a picture again, kept in the PNG file; ``repeat``: draws it again

Never imports torch, diffusers, transformers or onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from koala_bundle import __version__
from koala_bundle.errors import (
    ArgumentError,
    BuildError,
    BundleError,
    CheckpointError,
    DeviceError,
    GateError,
    InputError,
    KoalaError,
    TargetError,
)

if TYPE_CHECKING:
    from koala_runtime.arguments import Arguments
    from koala_runtime.output import DeviceImages, PipelineOutput
    from koala_runtime.pipeline import Pipeline
    from koala_runtime.recipe import Recipe, read_recipe, to_png
    from koala_runtime.samplers.classes import (
        DDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        EDMEulerScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        TCDScheduler,
        UniPCMultistepScheduler,
    )
    from koala_runtime.samplers.scheduler import Scheduler
    from koala_runtime.steps import Step, Steps

__all__ = [
    "ArgumentError",
    "Arguments",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DeviceError",
    "DeviceImages",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "GateError",
    "HeunDiscreteScheduler",
    "InputError",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KoalaError",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Pipeline",
    "PipelineOutput",
    "Recipe",
    "Scheduler",
    "Step",
    "Steps",
    "TCDScheduler",
    "TargetError",
    "UniPCMultistepScheduler",
    "__version__",
    "read_recipe",
    "to_png",
]

_MODULES = {
    "Arguments": "arguments",
    "DeviceImages": "output",
    "Pipeline": "pipeline",
    "PipelineOutput": "output",
    "Recipe": "recipe",
    "Scheduler": "samplers.scheduler",
    "Step": "steps",
    "Steps": "steps",
    "read_recipe": "recipe",
    "to_png": "recipe",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that an error can be caught without loading ONNX Runtime.
    if name in __all__:
        from importlib import import_module

        module = _MODULES.get(name, "samplers.classes")
        return getattr(import_module(f"koala_runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
