"""``koala inspect`` and ``koala doctor``: they look and change nothing."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from koala_bundle.codec import to_json
from koala_bundle.engine_record import EngineRecord, read_engine_record
from koala_bundle.errors import TargetError
from koala_bundle.manifest import Manifest, read_manifest
from koala_bundle.targets import TARGETS, Target
from koala_bundle.tensors import IOTensor
from koala_cli.build_commands import BundlePath
from koala_cli.screen import megabytes, plain, stdout
from koala_cli.work import hoisted_line, memory_table, roofline_table, work, work_table
from koala_machine.driver import query_driver
from koala_runtime.budget import budget

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

_MANY = 10  # tensors that are listed one by one
_PACKAGES = (
    *("koala-trt", "numpy", "onnxruntime", "tokenizers", "pillow", "torch", "diffusers", "transformers", "onnx"),
    *("tensorrt", "tensorrt-rtx-cu13"),
)


def inspect(bundle: BundlePath, as_json: AsJson = False) -> None:
    """Show what a bundle is: model, profile, components with their tensors and their work, engines."""
    manifest = read_manifest(bundle)
    records = _records(bundle)
    needed = {target: budget(manifest, record) for target, record in records.items() if target.has_device}
    if as_json:
        memory = {
            target.name: {**to_json(each), "total": each.total(), "low_memory_total": each.total(low_memory=True)}
            for target, each in needed.items()
        }
        shown = {
            "manifest": to_json(manifest),
            "engines": {target.name: to_json(record) for target, record in records.items()},
            "work": work(manifest),
            "memory": memory,
        }
        stdout.print_json(json.dumps(shown))
        return
    _print_summary(bundle, manifest)
    _print_components(manifest)
    stdout.print(work_table(manifest))
    stdout.print(roofline_table(manifest))
    if line := hoisted_line(manifest):
        stdout.print(line, soft_wrap=True)
    _print_engines(manifest, records)
    for target, each in needed.items():
        stdout.print(memory_table(target.name, each))


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can build and run, and why not."""
    from koala_engines.availability import obstacles
    from koala_runtime.opening import obstacle

    driver = query_driver()
    gpu = str(driver.gpu) if driver.gpu else f"none: {driver.problem}"
    facts = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": gpu,
        "gpu memory": megabytes(driver.memory_bytes) if driver.gpu else "-",
        "cuda driver": driver.cuda_version or "-",
        "free disk": megabytes(shutil.disk_usage(Path.cwd()).free),
        **{package: _version(package) for package in _PACKAGES},
    }
    targets = {
        target.name: {"build": problem or "yes", "run": obstacle(target) or "yes"}
        for target, problem in obstacles().items()
    }
    exporter = [package for package in ("torch", "diffusers", "transformers", "onnx") if _version(package) == "-"]
    export = f"install {', '.join(exporter)}: `pip install koala-trt[export]`" if exporter else "yes"
    if as_json:
        stdout.print_json(json.dumps({"machine": facts, "export": export, "targets": targets}))
        return
    machine = Table("this machine", "", title="koala doctor", title_justify="left")
    for name, value in facts.items():
        machine.add_row(name, value)
    stdout.print(machine)
    table = Table("stage", "build", "run")
    table.add_row("export", plain(export), "-")
    for target, answer in targets.items():
        table.add_row(target, plain(answer["build"]), answer["run"])
    stdout.print(table)


def _records(bundle: Path) -> dict[Target, EngineRecord]:
    records = {}
    for target in TARGETS:
        try:
            records[target] = read_engine_record(bundle, target)
        except TargetError:
            continue
    return records


def _print_summary(bundle: Path, manifest: Manifest) -> None:
    spec, profile, sampling = manifest.spec, manifest.profile, manifest.sampling
    scheduler = spec.scheduler
    unet = f"channels {list(spec.unet.block_out_channels)}, {'with' if spec.unet.mid_block else 'no'} mid block"
    guidance = f"guidance {sampling.guidance_scale:g}" if profile.cfg else "no guidance compiled in"
    rows = {
        "size": f"{profile.width} x {profile.height} px, batch {profile.batch}, {profile.precision}",
        "sampling": f"{sampling.num_inference_steps} steps, {guidance}",
        "scheduler": f"Euler, {scheduler.timestep_spacing}, {scheduler.prediction_type}",
        "u-net": f"{unet}, cross-attention {spec.unet.cross_attention_dim}",
        "text encoders": f"{spec.text_encoder.hidden_size} and {spec.text_encoder_2.hidden_size} wide",
        "vae": f"scaling factor {spec.vae.scaling_factor:g}{', asks for fp32' if spec.vae.force_upcast else ''}",
        "compared with PyTorch": manifest.gate,
        "made with": ", ".join(f"{tool} {number}" for tool, number in sorted(manifest.origin.tools.items())),
    }
    table = Table("bundle", str(bundle))
    for name, value in rows.items():
        table.add_row(name, value)
    stdout.print(table)


def _print_components(manifest: Manifest) -> None:
    table = Table("component", "inputs", "outputs", "ONNX")
    for entry in manifest.components:
        size = sum(manifest.files[path].size for path in entry.files)
        table.add_row(entry.name, _tensors(entry.inputs), _tensors(entry.outputs), megabytes(size))
    stdout.print(table)


def _print_engines(manifest: Manifest, records: dict[Target, EngineRecord]) -> None:
    if not records:
        stdout.print("no engines yet; build them with `koala engines`")
        return
    table = Table("engines", "compiler", "for", "size", "built in", "state")
    for target, record in records.items():
        current = record.key.onnx == manifest.onnx_digests()
        table.add_row(
            target.name,
            f"{record.key.compiler} {record.key.compiler_version}",
            str(record.key.gpu or record.key.options.get("compute_capabilities", "any processor")),
            megabytes(sum(file.size for file in record.files.values())),
            f"{sum(plan.build_seconds for plan in record.plans.values()):.1f} s",
            "current" if current else "stale: ONNX changed",
        )
    stdout.print(table)


def _tensors(tensors: Sequence[IOTensor]) -> str:
    """One per line; of many, which only a prologue and its step have, the first few and the size of the rest."""
    shown = len(tensors) if len(tensors) <= _MANY else _MANY - 4
    lines = [plain(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}") for tensor in tensors[:shown]]
    if rest := tensors[shown:]:
        lines.append(f"and {len(rest)} more, {sum(tensor.nbytes for tensor in rest) / 1e6:,.1f} MB")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


if sys.platform == "win32":  # consoles there default to a code page that cannot show the tables' lines
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
