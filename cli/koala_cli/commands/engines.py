"""``koala engines``: the second half of ``koala build``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from koala_bundle.targets import find_target
from koala_cli.extras import require_packages
from koala_cli.options import BuildTargets, Bundle, ComputeCapabilities, OptimizationLevel, Strict
from koala_cli.screen import note, progress_bar, say


def engines(
    bundle: Bundle,
    target: BuildTargets = None,
    compute_capability: ComputeCapabilities = None,
    optimization_level: OptimizationLevel = None,
    strict: Strict = False,
) -> None:
    """Build the engines of a bundle for one or more targets.

    Says for each target why it is built, or that it is up to date.
    """
    build_for_targets(bundle, target, compute_capability, optimization_level, strict)


def build_for_targets(
    bundle: Path,
    targets: Sequence[str] | None,
    compute_capabilities: Sequence[str] | None,
    optimization_level: int | None,
    strict: bool,
) -> None:
    """Build for each target, or for those of this machine, and print what was done."""
    require_packages(("onnx",), "export")
    from koala_engines.availability import default_targets
    from koala_engines.build import build_engines
    from koala_engines.options import BuildOptions

    options = BuildOptions(tuple(compute_capabilities or ()), optimization_level, strict)
    for target in map(find_target, targets) if targets else default_targets():
        with progress_bar() as progress:
            built = build_engines(bundle, target, options, note, progress)
        say(f"{bundle}: {target}: {'built' if built else 'up to date (same ONNX, compiler and options)'}")
