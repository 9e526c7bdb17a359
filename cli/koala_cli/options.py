"""Arguments and options that several subcommands share, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from koala_bundle.errors import ArgumentError
from koala_bundle.scheduler_keys import TIMESTEP_SPACINGS
from koala_bundle.spec import PASS_NAMES, PRECISIONS
from koala_bundle.targets import SIMULATED, TARGETS
from koala_cli.errors import shown_name


def choice(values: Sequence[str], help: str, *, hidden: Sequence[str] = ()) -> Any:
    """Return an option that takes one of ``values``: help lists them, the shell completes them, others are refused.

    ``hidden`` values are taken, but not shown.
    """

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    def check(param: typer.CallbackParam, given: Any) -> Any:
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value not in (*values, *hidden):
                raise ArgumentError(
                    shown_name(param), expected=" or ".join(values), found=repr(value), fix="pass one of these"
                )
        return given

    metavar = f"<{'|'.join(values)}>"
    return typer.Option(help=help, metavar=metavar, autocompletion=complete, callback=check, show_default=False)


def option(help: str, *names: str, metavar: str | None = None) -> Any:
    """Return an option whose help says what its default is."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


def argument(name: str, help: str) -> Any:
    """Return an argument that help and errors call ``name``."""
    return typer.Argument(help=help, metavar=name, show_default=False)


_TARGET_NAMES = tuple(target.name for target in TARGETS)
RunTarget: TypeAlias = Annotated[
    str | None, choice(_TARGET_NAMES, "Engines to run. Default: the best available.", hidden=(SIMULATED.name,))
]
Device: TypeAlias = Annotated[
    str | None, option("The GPU: its index or UUID, as nvidia-smi -L shows it. Default: the first.", metavar="<GPU>")
]
RayAddress: TypeAlias = Annotated[
    str | None,
    option("Draw on a Ray cluster: its address, auto, or local to start one.", "--ray", metavar="<address>"),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

Source: TypeAlias = Annotated[
    str, argument("SOURCE", "A checkpoint folder, a hub name, or a preset such as koala-700m.")
]
Key: TypeAlias = Annotated[
    str | None, option("A minisign public key, or its file, that must have signed the bundle.", metavar="<key>")
]
SignedBy: TypeAlias = Annotated[
    str | None, option("A minisign public key, or its file, that must have signed the bundle.", metavar="<key>")
]
OriginalSource: TypeAlias = Annotated[str, argument("SOURCE", "What the bundle was exported from.")]
Bundle: TypeAlias = Annotated[Path, argument("BUNDLE", "The bundle folder.")]

# koala export
Height: TypeAlias = Annotated[int | None, option("In pixels, a multiple of 8. Default: the checkpoint's own.")]
Width: TypeAlias = Annotated[int | None, option("In pixels, a multiple of 8. Default: the checkpoint's own.")]
Batch: TypeAlias = Annotated[int, option("Pictures per run. Default: 1.")]
Precision: TypeAlias = Annotated[str, choice(PRECISIONS, "Of the networks; sampling is always in fp32. Default: fp16.")]
Cfg: TypeAlias = Annotated[
    bool | None,
    option("Compile classifier-free guidance in. Default: if the default guidance is above 1.", "--cfg/--no-cfg"),
]
DefaultSteps: TypeAlias = Annotated[int | None, option("The bundle's default number of steps.", "--steps")]
DefaultGuidance: TypeAlias = Annotated[
    float | None, option("The bundle's default guidance; 1: none.", "--guidance-scale")
]
TimestepSpacing: TypeAlias = Annotated[str | None, choice(TIMESTEP_SPACINGS, "How steps are spread over the noise.")]
RandomWeights: TypeAlias = Annotated[bool, option("Dry run of a preset, without a download.", "--random-weights")]
Gate: TypeAlias = Annotated[
    bool, option("Compare every component with PyTorch before accepting it. Default: --gate.", "--gate/--no-gate")
]
Without: TypeAlias = Annotated[list[str] | None, choice(PASS_NAMES, "A pass to leave out; repeatable.")]

PromptChunks: TypeAlias = Annotated[
    int, option("Prompts of up to this many times 75 tokens; costs time. Default: 1.", metavar="<N>")
]
ClipSkip: TypeAlias = Annotated[
    int, option("Layers of the text encoders that prompts leave out. Default: 0.", metavar="<N>")
]
Embeddings: TypeAlias = Annotated[
    list[Path] | None,
    option("Learned words (textual inversion), a safetensors file; repeatable.", "--embedding", metavar="<file>"),
]
Loras: TypeAlias = Annotated[
    list[str] | None,
    option(
        "A LoRA to add to the weights, here or on the hub; repeatable.",
        "--lora",
        metavar="<file[:scale]>",
    ),
]
Base: TypeAlias = Annotated[
    Path | None,
    option("A bundle whose files are shared, as hard links, where they are the same.", metavar="<bundle>"),
]
GuidanceRescale: TypeAlias = Annotated[
    bool, option("Compile the rescaling of guidance in, for calls that ask for it.", "--guidance-rescale")
]
WithEncoder: TypeAlias = Annotated[
    bool, option("Compile the VAE's encoder, too: for pictures from pictures.", "--encoder")
]
OtherVAE: TypeAlias = Annotated[
    str | None, option("Take this VAE instead, a folder or hub name.", "--vae", metavar="<folder>")
]
PreviewDecoder: TypeAlias = Annotated[
    str | None,
    option("Decode previews with this VAE: taesdxl, say.", "--preview-decoder", metavar="<folder>"),
]

# koala engines
BuildTargets: TypeAlias = Annotated[
    list[str] | None,
    choice(_TARGET_NAMES, "What to build for; repeatable. Default: cpu, and those for this machine's GPU."),
]
ComputeCapabilities: TypeAlias = Annotated[
    list[str] | None,
    option(
        "GPUs that rtx plans are for, such as 8.9; repeatable. Default: all but Turing (7.5), or Turing on one.",
        metavar="<X.Y>",
    ),
]
OptimizationLevel: TypeAlias = Annotated[
    int | None, option("TensorRT's builder optimization level, 0 to 5; 5 searches longest.")
]
Strict: TypeAlias = Annotated[
    bool, option("Fail if an attention is not fused or float16 was lost, instead of a warning.", "--strict")
]
Tune: TypeAlias = Annotated[
    int,
    option("Search longest, build denoiser and VAE this often, keep the fastest; needs the GPU.", metavar="<BUILDS>"),
]
