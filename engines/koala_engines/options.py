"""The choices of a build: one set for all compilers, each of which reads what applies to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildOptions:
    """``compute_capabilities`` as in "8.9" (rtx; empty: all it supports), ``optimization_level`` 0 to 5.

    ``strict``: a fusion or float16 that got lost is an error instead of a warning.
    """

    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    strict: bool = False
