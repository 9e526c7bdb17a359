"""``koala engines``: the second half of ``koala build``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from koala_bundle.errors import KoalaError
from koala_bundle.signed import SIGNATURE
from koala_bundle.targets import find_target
from koala_cli.errors import print_error
from koala_cli.extras import require_packages
from koala_cli.options import BuildTargets, Bundle, ComputeCapabilities, Device, OptimizationLevel, Strict, Tune
from koala_cli.screen import note, progress_bar, say


def engines(
    bundle: Bundle,
    target: BuildTargets = None,
    compute_capability: ComputeCapabilities = None,
    optimization_level: OptimizationLevel = None,
    strict: Strict = False,
    tune: Tune = 0,
    device: Device = None,
) -> None:
    """Build the engines of a bundle for one or more targets.

    Says for each target why it is built, or that it is up to date. Engines for other machines are left alone, and a
    target that fails does not stop the others.
    """
    build_for_targets(bundle, target, compute_capability, optimization_level, strict, tune, device)


def build_for_targets(
    bundle: Path,
    targets: Sequence[str] | None,
    compute_capabilities: Sequence[str] | None,
    optimization_level: int | None,
    strict: bool,
    tune: int = 0,
    device: str | None = None,
) -> None:
    """Build for each target, or for those of this machine, and print what was done."""
    require_packages(("onnx",), "export")
    from koala_engines.availability import default_targets
    from koala_engines.build import build_targets
    from koala_engines.options import BuildOptions
    from koala_machine.driver import find_gpu
    from koala_runtime.timing import time_plan

    if device is not None:
        find_gpu(device)
    options = BuildOptions(tuple(compute_capabilities or ()), optimization_level, strict, tune, device)
    wanted = [find_target(name) for name in targets] if targets else default_targets(device or 0)
    with progress_bar() as progress:
        results = build_targets(bundle, wanted, options, note, progress, partial(time_plan, device=device or 0))
    errors = []
    for target, result in results.items():
        if isinstance(result, KoalaError):
            errors.append(result)
        else:
            say(f"{bundle}: {target}: {'built' if result else 'up to date (same ONNX, compiler and options)'}")
    if any(result is True for result in results.values()) and (bundle / SIGNATURE).exists():
        note(f"{bundle}: its signature does not cover what was built; sign it again with `koala sign`")
    for error in errors[1:]:
        print_error(error)
    if errors:
        raise errors[0]
