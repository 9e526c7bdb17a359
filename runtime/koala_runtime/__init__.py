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
- ``encoding``: a picture as a file; ``marking``: says in both that it was made by a model

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
    WithheldError,
)

if TYPE_CHECKING:
    from koala_runtime.arguments import Arguments
    from koala_runtime.encoding import encode_picture, to_png
    from koala_runtime.marking.mark import Mark
    from koala_runtime.marking.watermark import Watermark, add_watermark, read_watermark
    from koala_runtime.output import DeviceImages, PipelineOutput
    from koala_runtime.pipeline import Pipeline
    from koala_runtime.recipe import Recipe, read_recipe
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
    "Mark",
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
    "Watermark",
    "WithheldError",
    "__version__",
    "add_watermark",
    "encode_picture",
    "read_recipe",
    "read_watermark",
    "to_png",
]

_MODULES = {
    "Arguments": "arguments",
    "DeviceImages": "output",
    "Mark": "marking.mark",
    "Pipeline": "pipeline",
    "PipelineOutput": "output",
    "Recipe": "recipe",
    "Scheduler": "samplers.scheduler",
    "Step": "steps",
    "Steps": "steps",
    "Watermark": "marking.watermark",
    "add_watermark": "marking.watermark",
    "encode_picture": "encoding",
    "read_recipe": "recipe",
    "read_watermark": "marking.watermark",
    "to_png": "encoding",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that an error can be caught without loading ONNX Runtime.
    if name in __all__:
        from importlib import import_module

        module = _MODULES.get(name, "samplers.classes")
        return getattr(import_module(f"koala_runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
