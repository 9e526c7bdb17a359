"""The long run: ``python -m tests.fuzz --count 100000 --seed 0`` prints a table per kind; exit code 1 for findings.

A seed is an input: ``--kind onnx --seed 1234 --count 1`` repeats one. ``SHARES`` says how many inputs each kind gets. A
run that was stopped goes on with ``--kind`` for those that are missing.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.kinds import KINDS, SHARES
from tests.fuzz.runs import run_kind


def main() -> int:
    """Run, and print what came of it."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--count", type=int, default=10_000, help="inputs over all kinds")
    options.add_argument("--seed", type=int, default=0, help="the first seed of every kind")
    options.add_argument("--kind", choices=KINDS, action="append", help="only this kind; repeatable")
    chosen = options.parse_args()
    names = chosen.kind or [*KINDS]
    whole = sum(SHARES[name] for name in names)
    failed = False
    head = f"{'kind':22}{'first seed':>12}{'inputs':>9}{'accepted':>10}{'refused':>9}{'findings':>10}{'seconds':>9}"
    print(head, flush=True)
    for name in names:
        started, count = time.monotonic(), -(-chosen.count * SHARES[name] // whole)
        tally = run_kind(name, chosen.seed, count, _print_finding)
        figures = (tally.ended.total(), tally.ended["accepted"], tally.ended["refused"], tally.ended["finding"])
        shown = "".join(f"{figure:>{width}}" for figure, width in zip(figures, (9, 10, 9, 10), strict=True))
        print(f"{name:22}{chosen.seed:>12}{shown}{time.monotonic() - started:>9.0f}", flush=True)
        failed = failed or bool(tally.findings)
    return int(failed)


def _print_finding(seed: int, ended: str) -> None:
    if ended.startswith("finding"):
        print(f"  seed {seed}: {ended}", flush=True)
    elif seed % 1000 == 0 and sys.stderr.isatty():
        print(f"  seed {seed}", end="\r", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
