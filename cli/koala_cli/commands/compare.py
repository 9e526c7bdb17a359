"""``koala compare``: what changed between two results of ``koala bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from koala_cli.options import AsJson, argument
from koala_cli.screen import say_json, stdout, table


def compare(
    before: Annotated[Path, argument("BEFORE", "A results.json of koala bench.")],
    after: Annotated[Path, argument("AFTER", "A later one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two results of koala bench.

    Shows for each backend what changed, and what is within the noise.
    """
    from koala_bench.results import changes, load

    old, new = load(before), load(after)
    rows = changes(old, new)
    if as_json:
        say_json(
            [
                {
                    "backend": name,
                    "before_seconds": old.of(name).quantile(0.5),
                    "after_seconds": new.of(name).quantile(0.5),
                    "change": change,
                }
                for name, _, _, change in rows
            ]
        )
        return
    shown = table("backend", "before, ms", "after, ms", "change", figures=True)
    for row in rows:
        shown.add_row(*row)
    stdout.print(shown)
