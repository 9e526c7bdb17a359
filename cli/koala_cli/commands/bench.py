"""``koala bench``: ways to run a checkpoint, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from koala_bundle.codec import to_json
from koala_bundle.errors import ArgumentError
from koala_cli.extras import quiet_libraries, require_packages
from koala_cli.files import make_output_folder
from koala_cli.options import AsJson, Bundle, Device, Loras, OriginalSource, option
from koala_cli.screen import note, reported_lines, say, say_figures, say_json

if TYPE_CHECKING:
    from koala_bench.results import Results
    from koala_bench.sweep import Sweep

_PACKAGES = ("torch", "diffusers", "transformers", "onnx", "skimage", "matplotlib")
_PROMPT = "a large red circle on a white background"


def bench(
    source: OriginalSource,
    bundle: Bundle,
    backend: Annotated[
        list[str] | None,
        option(
            "diffusers, diffusers-compile, optimum-onnx, openvino-genai, onnxruntime:PROVIDER, koala:TARGET or "
            "module:Class; repeatable. Default: all.",
            metavar="<NAME>",
        ),
    ] = None,
    device: Device = None,
    rounds: Annotated[int, option("Warm runs of each backend. Default: 20.")] = 20,
    steps: Annotated[int | None, option("Denoising steps. Default: the bundle's own.")] = None,
    guidance_scale: Annotated[float | None, option("Default: the bundle's own.")] = None,
    prompt: Annotated[str, option(f'What to draw. Default: "{_PROMPT}".')] = _PROMPT,
    reference: Annotated[
        bool, option("Compare pictures with float32 PyTorch. Default: --reference.", "--reference/--no-reference")
    ] = True,
    alone: Annotated[
        bool | None,
        option(
            "Load one backend at a time, or all at once. Default: all, if the GPU's memory holds them.",
            "--alone/--together",
        ),
    ] = None,
    random_weights: Annotated[
        bool, option("SOURCE is a preset; the bundle was exported with --random-weights.", "--random-weights")
    ] = False,
    lora: Loras = None,
    python: Annotated[
        list[str] | None, option("Run a backend with another Python; repeatable.", metavar="<NAME=PATH>")
    ] = None,
    steps_sweep: Annotated[str | None, option("Measure at each of these numbers of steps.", metavar="<N,N...>")] = None,
    batch_sweep: Annotated[str | None, option("Export, build and measure these batches.", metavar="<N,N...>")] = None,
    size_sweep: Annotated[str | None, option("Export, build and measure these sizes.", metavar="<N,N...>")] = None,
    output: Annotated[Path, option("Folder for JSON, tables in Markdown and plots. Default: bench-results.")] = Path(
        "bench-results"
    ),
    as_json: AsJson = False,
) -> None:
    """Measure a bundle beside PyTorch and others.

    Cold start, latency, memory, and likeness to PyTorch. Each backend has a process of its own, and they draw in turn.
    What cannot be measured here is listed with the reason.
    """
    require_packages(_PACKAGES, "bench")
    from koala_bench.report import save, save_sweep
    from koala_bench.runner import BenchOptions, run
    from koala_bench.sweep import sweep

    make_output_folder(output)
    quiet_libraries()
    given = {"steps": steps_sweep, "batch": batch_sweep, "size": size_sweep}
    sweeps = {kind: _values(f"{kind}_sweep", text) for kind, text in given.items() if text is not None}
    options = BenchOptions(
        names=None if backend is None else tuple(backend),
        prompt=prompt,
        rounds=rounds,
        steps=steps,
        guidance_scale=guidance_scale,
        reference=reference,
        alone=alone,
        random_weights=random_weights,
        pythons=_pythons(python or ()),
        device=device,
        loras=tuple(lora or ()),
    )
    results, swept, written = None, [], []
    with reported_lines() as report:
        for kind, values in sweeps.items():
            swept.append(sweep(kind, values, bundle, source, options, report))
            written += save_sweep(swept[-1], output)
        if not sweeps:
            results = run(bundle, source, options, report)
            written += save(results, output)
    if as_json:
        say_json({each.kind: to_json(each) for each in swept} if results is None else to_json(results))
    elif results is None:
        _print_sweeps(swept)
    else:
        _print_results(results)
    for path in written:
        note(f"wrote {path}")


def _print_results(results: Results) -> None:
    from koala_bench.tables import tables, title

    say(title(results))
    for each in tables(results):
        say_figures(each)
    _print_not_measured(results.not_measured)


def _print_sweeps(sweeps: Sequence[Sweep]) -> None:
    from koala_bench.tables import as_table, sweep_columns, sweep_rows, title

    not_measured: dict[str, str] = {}
    for each in sweeps:
        say(title(each.results[0], each.kind))
        say_figures(as_table(sweep_columns(each), sweep_rows(each)))
        for results in each.results:
            not_measured |= results.not_measured
    _print_not_measured(not_measured)


def _print_not_measured(reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        say(f"not measured: {name} ({reason})")


def _values(parameter: str, text: str) -> list[int]:
    values = text.split(",")
    if all(value.strip().isdecimal() and int(value) > 0 for value in values):
        return [int(value) for value in values]
    raise ArgumentError(parameter, expected="whole numbers such as 1,2,4", found=repr(text), fix="separate by commas")


def _pythons(given: Sequence[str]) -> dict[str, str]:
    pythons = {}
    for text in given:
        name, _, path = text.partition("=")
        if not Path(path).is_file():
            raise ArgumentError(
                "python", expected="NAME=PATH of a Python", found=repr(text), fix="pass one such as bin/python"
            )
        pythons[name] = path
    return pythons
