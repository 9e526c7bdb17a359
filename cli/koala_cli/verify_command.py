"""``koala verify``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from koala_bundle.codec import to_json
from koala_bundle.errors import KoalaError
from koala_cli.build_commands import BundlePath, need, quiet_libraries
from koala_cli.screen import plain, stdout, working

if TYPE_CHECKING:
    from koala_verify.comparison import Verification


def verify(
    bundle: BundlePath,
    source: Annotated[str, typer.Argument(help="What the bundle was exported from.", show_default=False)],
    target: Annotated[str | None, typer.Option(help="Whose plans to check. Default: the best there are.")] = None,
    seeds: Annotated[int, typer.Option(help="Pictures per prompt.")] = 1,
    html: Annotated[Path | None, typer.Option(help="Where to write a page with the pictures side by side.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare a bundle with its checkpoint: every component, and whole pictures, beside PyTorch in float32.

    Exit code 1 if anything is outside its bounds, with what that is.
    """
    need(("torch", "diffusers", "transformers", "onnx", "skimage", "jinja2"), "bench")
    from koala_verify.verify import verify as run

    quiet_libraries()
    with working() as report:
        findings = run(bundle, source, target, seeds, report)
    if html is not None:
        from koala_bundle.files import write_atomic
        from koala_verify.page import page

        write_atomic(html, page(findings).encode())
    if as_json:
        told = {field.name: getattr(findings, field.name) for field in dataclasses.fields(findings)}
        del told["pairs"]
        stdout.print_json(json.dumps({**to_json(told), "passed": findings.passed}))
    else:
        _print(findings)
    if not findings.passed:
        raise KoalaError(
            str(bundle),
            expected="what its checkpoint computes",
            found=f"differences in {findings.failures[0]}",
            fix="export it and build its engines again; the tables say how far off each part is",
        )


def _print(findings: Verification) -> None:
    table = Table("component", "output", "by", "error", "cosine", "dB", "", box=SIMPLE_HEAD)
    for each in findings.outputs:
        figures = (f"{each.error:.1e}", f"{each.cosine:.6f}", f"{each.psnr:.1f}")
        lost = f", {each.not_finite} not finite" if each.not_finite else ""
        table.add_row(each.component, each.tensor, each.runner, *figures, _word(each.passed) + lost)
    stdout.print(table)
    table = Table("picture", "seed", "of 255", "dB", "SSIM", "LPIPS", "CLIP", "", box=SIMPLE_HEAD)
    for picture in findings.pictures:
        told = (
            f"{picture.largest * 255:.0f}",
            f"{picture.psnr:.1f}",
            f"{picture.ssim:.4f}",
            "-" if picture.lpips is None else f"{picture.lpips:.4f}",
            "-" if picture.clip_scores is None else "{:.2f}, {:.2f}".format(*picture.clip_scores),
        )
        table.add_row(plain(picture.prompt), str(picture.seed), *told, _word(picture.passed))
    stdout.print(table)
    for name, why in findings.skipped.items():
        stdout.print(f"without {name}: {why}", markup=False, soft_wrap=True)


def _word(passed: bool) -> str:
    return "[green]passed[/]" if passed else "[red]failed[/]"
