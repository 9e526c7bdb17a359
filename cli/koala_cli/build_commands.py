"""``koala export`` and ``koala engines``."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from koala_bundle.errors import InputError
from koala_bundle.targets import find_target
from koala_cli.screen import progress_bar, stderr, stdout, working

BundlePath = Annotated[Path, typer.Argument(help="The bundle folder.", show_default=False)]


def export(
    source: Annotated[
        str, typer.Argument(help="A checkpoint folder, a hub name, or a preset such as koala-lightning-700m.")
    ],
    bundle: BundlePath,
    height: Annotated[
        int | None,
        typer.Option(help="Pixels; static, a multiple of 8. Default: the checkpoint's own.", show_default=False),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Pixels; static, a multiple of 8. Default: the checkpoint's own.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures per run; static.")] = 1,
    precision: Annotated[str, typer.Option(help="fp16 or fp32; the sampler's arithmetic is fp32 in both.")] = "fp16",
    cfg: Annotated[
        bool | None,
        typer.Option(
            "--cfg/--no-cfg",
            help="Compile classifier-free guidance in. Default: if the recommended guidance is above 1.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Default number of steps of the bundle.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Default guidance of the bundle.")] = None,
    timestep_spacing: Annotated[str | None, typer.Option(help="leading, trailing or linspace.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Dry run of a preset without a download.")
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Compare every component with PyTorch before accepting it.")
    ] = True,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="A pass to leave out: rescale, chunk, sequence_major or hoist. May be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """Turn a diffusers checkpoint into a bundle of ONNX components.

    Writes nothing if the bundle was already made from the same. Steps, guidance and spacing default to what the
    model card recommends (presets and their hub names) or to the checkpoint's own files.
    """
    need(("torch", "diffusers", "transformers", "onnx", "onnxscript"), "export")
    from koala_export.exporter import ExportOptions, export_bundle

    quiet_libraries()
    options = ExportOptions(
        height,
        width,
        batch,
        precision,
        cfg,
        steps,
        guidance_scale,
        timestep_spacing,
        random_weights,
        gate,
        tuple(without or ()),
    )
    with working() as report:
        written = export_bundle(source, bundle, options, report)
    stdout.print(f"{bundle}: {'written' if written else 'nothing to do, it was made from the same'}", soft_wrap=True)


def engines(
    bundle: BundlePath,
    target: Annotated[
        list[str] | None,
        typer.Option(help="tensorrt, rtx or cpu; may be repeated. Default: those for this machine's GPU, and cpu."),
    ] = None,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="Such as 8.9, for --target rtx; may be repeated. Default: all.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 to 5, TensorRT's builder optimization level; 5 searches longest.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where an attention is not fused or float16 was lost.")
    ] = False,
) -> None:
    """Build the plans of a bundle for one or more targets.

    Says for each target why it is built, or that there is nothing to do.
    """
    need(("onnx",), "export")
    from koala_engines.availability import default_targets
    from koala_engines.build import build_engines
    from koala_engines.options import BuildOptions

    options = BuildOptions(tuple(compute_capability or ()), optimization_level, strict)
    for each in [find_target(name) for name in target] if target else default_targets():
        with progress_bar() as progress:
            built = build_engines(
                bundle, each, options, lambda line: stderr.print(line, markup=False, soft_wrap=True), progress
            )
        stdout.print(f"{bundle}: {each}: {'built' if built else 'nothing to do'}", soft_wrap=True)


def need(packages: tuple[str, ...], extra: str) -> None:
    """Raise InputError with the command that installs what is missing of ``packages``."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            "this command",
            expected=f"the packages of koala-trt[{extra}]",
            found=f"no {', '.join(missing)}",
            fix=f"install them with `pip install koala-trt[{extra}]`",
        )


def quiet_libraries() -> None:
    """One progress line is enough: the libraries' own bars and advice would break it up."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
