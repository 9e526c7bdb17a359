"""``koala inspect``: what a bundle is, or how a picture was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from koala_bundle.codec import to_json
from koala_bundle.engine_record import ENGINES, EngineRecord, engine_folder, engine_variants, read_engine_record
from koala_bundle.manifest import Manifest, ModelOrigin, read_manifest
from koala_bundle.schedulers import SchedulerSpec
from koala_bundle.spec import ModelSpec, Profile
from koala_bundle.targets import TARGETS, find_target
from koala_bundle.tensors import IOTensor
from koala_cli.options import AsJson, argument
from koala_cli.screen import megabytes, say, say_json, stdout, table
from koala_cli.work import hoisted_line, memory_table, roofline_table, work, work_table

SPACINGS = ("karras", "exponential", "beta")
_MANY = 10  # tensors that are listed one by one


def inspect(
    path: Annotated[Path, argument("PATH", "A bundle folder, or a PNG picture of koala run.")], as_json: AsJson = False
) -> None:
    """Show what a bundle is, or how a picture was drawn.

    Of a bundle: model, profile, components with their tensors and their work, engines. Of a picture: its recipe.
    """
    if path.is_file():
        _inspect_picture(path, as_json)
    else:
        _inspect_bundle(path, as_json)


def _inspect_picture(path: Path, as_json: bool) -> None:
    from koala_cli.picture import recipe_rows
    from koala_runtime.recipe import read_recipe

    recipe = read_recipe(path)
    if as_json:
        say_json(to_json(recipe))
        return
    shown = table("picture", str(path))
    for name, value in recipe_rows(recipe).items():
        shown.add_row(name, value)
    stdout.print(shown)


def _inspect_bundle(bundle: Path, as_json: bool) -> None:
    from koala_runtime.budget import budget

    manifest = read_manifest(bundle)
    records = _records(bundle)
    usable = {name: record for name, record in records.items() if record.is_of(manifest)}
    on_device = {name: record for name, record in usable.items() if find_target(record.target).has_device}
    needed = {name: budget(manifest, record) for name, record in on_device.items()}
    if as_json:
        memory = {
            name: {**to_json(each), "total": each.total(), "low_memory_total": each.total(low_memory=True)}
            for name, each in needed.items()
        }
        shown = {
            "manifest": to_json(manifest),
            "engines": {name: to_json(record) for name, record in records.items()},
            "work": work(manifest),
            "memory": memory,
        }
        say_json(shown)
        return
    _print_summary(bundle, manifest)
    _print_components(manifest)
    stdout.print(work_table(manifest))
    stdout.print(roofline_table(manifest))
    if line := hoisted_line(manifest):
        say(line)
    _print_engines(manifest, records)
    _print_trials(records)
    for name, each in needed.items():
        stdout.print(memory_table(name, each))


def _records(bundle: Path) -> dict[str, EngineRecord]:
    """Return every set of engines by its folder below engines/."""
    records = {}
    for target in TARGETS:
        for variant in engine_variants(bundle, target):
            folder = engine_folder(bundle, target, variant).relative_to(bundle / ENGINES).as_posix()
            records[folder] = read_engine_record(bundle, target, variant)
    return records


def _print_summary(bundle: Path, manifest: Manifest) -> None:
    spec, profile, sampling = manifest.spec, manifest.profile, manifest.sampling
    vae, previews = manifest.origin.vae, manifest.origin.preview_decoder
    unet = f"channels {list(spec.unet.block_out_channels)}, {'with' if spec.unet.mid_block else 'no'} mid block"
    guidance = f"guidance {sampling.guidance_scale:g}" if profile.cfg else "no guidance compiled in"
    rows = {
        "size": f"{profile.width} x {profile.height} px, batch {profile.batch}, {profile.precision}",
        "prompts": _prompts(spec, profile),
        "sampling": f"{sampling.num_inference_steps} steps, {guidance}",
        "scheduler": _scheduler(spec.scheduler),
        "other schedulers": _other_schedulers(spec.scheduler),
        "u-net": f"{unet}, cross-attention {spec.unet.cross_attention_dim}",
        "text encoders": f"{spec.text_encoder.hidden_size} and {spec.text_encoder_2.hidden_size} wide",
        "vae": f"scaling factor {spec.vae.scaling_factor:g}{', asks for fp32' if spec.vae.force_upcast else ''}"
        f"{f', from {_given(vae)}' if vae else ''}",
        **({"preview decoder": f"from {_given(previews)}"} if previews else {}),
        **({"LoRA": ", ".join(str(lora) for lora in manifest.origin.loras)} if manifest.origin.loras else {}),
        "compared with PyTorch": manifest.gate,
        "made with": ", ".join(f"{tool} {number}" for tool, number in sorted(manifest.origin.tools.items())),
    }
    shown = table("bundle", str(bundle))
    for name, value in rows.items():
        shown.add_row(name, value)
    stdout.print(shown)


def _given(origin: ModelOrigin) -> str:
    return f"{origin.source} (SHA-256 {origin.digest[:12]})"


def _scheduler(spec: SchedulerSpec) -> str:
    from koala_runtime.samplers import label

    keys = [key for key in ("timestep_spacing", "prediction_type") if key in spec.values]
    return ", ".join([label(spec), *(str(spec[key]) for key in keys)])


def _other_schedulers(spec: SchedulerSpec) -> str:
    """The short names that calls can choose, each with its spacings in one word: euler[_karras|_beta]."""
    from koala_runtime.samplers import available

    stems: dict[str, list[str]] = {}
    for name in available(spec):
        stem, _, spacing = name.rpartition("_")
        if stem in stems and spacing in SPACINGS:
            stems[stem].append(spacing)
        else:
            stems[name] = []
    marked = [f"{stem}*" if spacings else stem for stem, spacings in stems.items()]
    return f"{', '.join(marked)} (*: also with _{', _'.join(SPACINGS)})"


def _prompts(spec: ModelSpec, profile: Profile) -> str:
    chunk = spec.text_encoder.sequence_length - 2  # between a start and an end
    found = [f"up to {chunk * profile.prompt_chunks} tokens"]
    if profile.clip_skip:
        found.append(f"clip_skip {profile.clip_skip}")
    return ", ".join(found)


def _print_components(manifest: Manifest) -> None:
    shown = table("component", "ONNX", "", "tensors")
    for entry in manifest.components:
        size = sum(manifest.files[path].size for path in entry.files)
        shown.add_row(entry.name, megabytes(size), "in", _tensors(entry.inputs))
        shown.add_row("", "", "out", _tensors(entry.outputs))
    stdout.print(shown)


def _print_engines(manifest: Manifest, records: dict[str, EngineRecord]) -> None:
    if not records:
        say("no engines yet; build them with `koala engines`")
        return
    shown = table("engines", "compiler", "for", "size", "built in", "state")
    for name, record in records.items():
        current = record.is_of(manifest)
        shown.add_row(
            name,
            f"{record.key.compiler} {record.key.compiler_version}",
            str(record.key.gpu or record.key.options.get("compute_capabilities", "any processor")),
            megabytes(sum(file.size for file in record.files.values())),
            f"{sum(plan.build_seconds for plan in record.plans.values()):.1f} s",
            "current" if current else "stale: ONNX changed",
        )
    stdout.print(shown)


def _print_trials(records: dict[str, EngineRecord]) -> None:
    """Show what tuning compared, if there was any: the seconds of one run of each build."""
    shown = table("tuned", "component", "builds", "fastest", "slowest")
    for name, record in records.items():
        for component, plan in record.plans.items():
            if plan.trials:
                fastest, slowest = (f"{seconds * 1e3:.3f} ms" for seconds in (plan.trials[0], plan.trials[-1]))
                shown.add_row(name, component, str(len(plan.trials)), fastest, slowest)
    if shown.row_count:
        stdout.print(shown)


def _tensors(tensors: Sequence[IOTensor]) -> str:
    """One per line; of many, which only a prologue and its step have, the first few and the size of the rest."""
    shown = len(tensors) if len(tensors) <= _MANY else _MANY - 4
    lines = [f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors[:shown]]
    if rest := tensors[shown:]:
        lines.append(f"and {len(rest)} more, {sum(tensor.nbytes for tensor in rest) / 1e6:,.1f} MB")
    return "\n".join(lines)
