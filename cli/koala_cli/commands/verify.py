"""``koala verify``: a bundle compared with its digests, its signature and its checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from koala_bundle.codec import to_json
from koala_bundle.errors import ArgumentError, KoalaError
from koala_bundle.integrity import check_bundle
from koala_bundle.signed import record_digests
from koala_bundle.swap import whole
from koala_cli.commands.verify_layers import compare_by_layer
from koala_cli.extras import quiet_libraries, require_packages
from koala_cli.files import check_output_file, write_output
from koala_cli.options import AsJson, Device, Embeddings, Key, Loras, RunTarget, argument, option
from koala_cli.screen import reported_lines, say, say_json, stdout, table, verdict
from koala_runtime.signature import check_signed

if TYPE_CHECKING:
    from koala_verify.comparison import Verification


def verify(
    source: Annotated[str, argument("SOURCE", "What it was exported from; may be left out.")],
    bundle: Annotated[Path | None, argument("BUNDLE", "The bundle folder.")] = None,
    key: Key = None,
    target: RunTarget = None,
    device: Device = None,
    seeds: Annotated[int, option("Pictures per prompt. Default: 1.")] = 1,
    html: Annotated[Path | None, option("Write a page with the pictures side by side to this file.")] = None,
    embedding: Embeddings = None,
    lora: Loras = None,
    layers: Annotated[
        str | None, option("Compare the tensors inside this component instead, such as denoiser.", metavar="COMPONENT")
    ] = None,
    save: Annotated[
        Path | None, option("With --layers: write both sides' values to this new folder, for Polygraphy.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a bundle with its checkpoint, or check its files.

    koala verify SOURCE BUNDLE compares every component and whole pictures with PyTorch in float32, or with --layers
    every layer of one component. Exit code 1 if anything is outside its bounds. koala verify BUNDLE compares every file
    with its digest. With --key both check the signature.
    """
    if bundle is None:
        options = {"target": target, "device": device, "html": html, "layers": layers, "save": save}
        others = {"seeds": None if seeds == 1 else seeds, "embedding": embedding or None, "lora": lora or None}
        _refuse({**options, **others}, "SOURCE with it, to compare with")
        _check(Path(source), key, as_json)
        return
    if key is not None:
        check_signed(whole(bundle), key, record_digests(whole(bundle)))
    if layers is not None:
        _refuse(
            {"seeds": seeds if seeds != 1 else None, "html": html}, "nothing beside --layers, which draws no pictures"
        )
        _refuse({"device": device}, "nothing beside --layers, which takes the first GPU")
        compare_by_layer(source, bundle, layers, target, save, embedding or (), lora or (), as_json)
        return
    _refuse({"save": save}, "--layers with it")
    require_packages(("torch", "diffusers", "transformers", "onnx", "skimage", "jinja2"), "bench")
    from koala_verify.verify import verify as compare_with_checkpoint

    if html is not None:
        check_output_file(html, "html")
    quiet_libraries()
    with reported_lines() as report:
        findings = compare_with_checkpoint(bundle, source, target, seeds, report, device, embedding or (), lora or ())
    if html is not None:
        from koala_verify.page import page

        write_output(html, page(findings).encode())
    if as_json:
        shown = {field.name: getattr(findings, field.name) for field in dataclasses.fields(findings)}
        del shown["pairs"]
        say_json({**to_json(shown), "passed": findings.passed})
    else:
        _print(findings)
    if not findings.passed:
        raise KoalaError(
            str(bundle),
            expected="what its checkpoint computes",
            found=f"differences in {findings.failures[0]}",
            fix="export it and build its engines again; the tables say how far off each part is",
        )


def _check(bundle: Path, key: str | None, as_json: bool) -> None:
    """Check every file of a bundle, and its signature where there is a key."""
    found = whole(bundle)
    comment = None if key is None else check_signed(found, key, record_digests(found))
    checked, others = check_bundle(found)
    if as_json:
        say_json({"checked": checked, "not_covered": others, "signed": comment})
        return
    say(f"{bundle}: {len(checked)} files have their digests")
    for name in others:
        say(f"{bundle}: no digest covers {name}")
    if comment is not None:
        say(f"{bundle}: signed: {comment.split(chr(9))[-1]}")


def _refuse(options: dict[str, object], expected: str) -> None:
    """Raise ArgumentError for an option that was given and has no meaning."""
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(name, expected=expected, found=str(value), fix="see `koala verify --help`")


def _print(findings: Verification) -> None:
    outputs = table("component", "output", "by", "error", "cosine", "dB", "")
    for each in findings.outputs:
        shown = verdict(each.passed)
        if each.not_finite:
            shown.append(f", {each.not_finite} not finite")
        outputs.add_row(
            each.component,
            each.tensor,
            each.runner,
            f"{each.error:.1e}",
            f"{each.cosine:.6f}",
            f"{each.psnr:.1f}",
            shown,
        )
    stdout.print(outputs)
    pictures = table("picture", "seed", "of 255", "dB", "SSIM", "LPIPS", "CLIP", "")
    for picture in findings.pictures:
        figures = (
            f"{picture.largest * 255:.0f}",
            f"{picture.psnr:.1f}",
            f"{picture.ssim:.4f}",
            "-" if picture.lpips is None else f"{picture.lpips:.4f}",
            "-" if picture.clip_scores is None else "{:.2f}, {:.2f}".format(*picture.clip_scores),
        )
        pictures.add_row(picture.prompt, str(picture.seed), *figures, verdict(picture.passed))
    stdout.print(pictures)
    for name, why in findings.skipped.items():
        say(f"without {name}: {why}")
