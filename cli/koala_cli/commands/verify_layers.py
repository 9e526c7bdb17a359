"""``koala verify --layers``: where a component differs from its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from koala_bundle.codec import to_json
from koala_bundle.errors import KoalaError
from koala_cli.extras import quiet_libraries, require_packages
from koala_cli.screen import reported_lines, say, say_json, stdout, table, verdict

if TYPE_CHECKING:
    from koala_verify.layer_comparison import Layers


def compare_by_layer(
    source: str,
    bundle: Path,
    component: str,
    target: str | None,
    save: Path | None,
    embeddings: Sequence[Path],
    loras: Sequence[str],
    as_json: bool,
) -> None:
    """Print the first tensor that is out of bounds and the worst ten layers. Raises KoalaError if there is one."""
    require_packages(("torch", "diffusers", "transformers", "onnx", "polygraphy"), "bench")
    from koala_verify.layers import compare_layers

    quiet_libraries()
    with reported_lines() as report:
        findings = compare_layers(bundle, source, component, target, save, report, embeddings, loras)
    if as_json:
        chosen = {"passed": findings.passed, "first": to_json(findings.first), "worst": to_json(findings.worst())}
        say_json({**to_json(findings), **chosen})
    else:
        _print(findings)
    if findings.first is not None:
        raise KoalaError(
            str(bundle),
            expected="what its checkpoint computes",
            found=f"differences in {findings.component} from {findings.first} on",
            fix="export it and build its engines again; the table says how far off each layer is",
        )


def _print(findings: Layers) -> None:
    worst = table("worst layers", "by", "checkpoint", "error", "cosine", "")
    for each in findings.worst():
        figures = (f"{each.error:.1e}", f"{each.cosine:.6f}")
        module = each.module or "around the model"
        worst.add_row(each.tensor, each.operator, module, *figures, verdict(each.passed))
    stdout.print(worst)
    failed = sum(not each.passed for each in findings.layers)
    say(
        f"{findings.component} on {findings.target}: {len(findings.layers)} tensors compared with PyTorch, "
        f"{failed} out of bounds; {findings.inside} more are inside PyTorch's operators"
    )
    if findings.first is not None:
        say(f"first out of bounds: {findings.first}")
