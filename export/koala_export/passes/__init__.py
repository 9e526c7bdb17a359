"""Graph passes between trace and engines; each gives graphs that compute the same, and can be left out.

- ``chunk``: an attention that cannot be fused takes its queries in chunks
- ``sequence_major``: tokens in the order in which attention needs no rearranging
- ``hoist``: what does not depend on the latents leaves the denoising loop; ``batch_steps`` computes it for all steps

To add a pass, define a ``base.Pass`` in a file of its own and add it to ``PASSES``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from koala_bundle.counts import Counts
from koala_bundle.manifest import PassChange
from koala_export.counts import count
from koala_export.passes.base import Part, Pass
from koala_export.passes.chunk import CHUNK
from koala_export.passes.hoist import HOIST
from koala_export.passes.sequence_major import SEQUENCE_MAJOR

PASSES: tuple[Pass, ...] = (CHUNK, SEQUENCE_MAJOR, HOIST)
"""In the order in which they run."""


def run_passes(
    part: Part, names: Collection[str], report: Callable[[str], None]
) -> tuple[list[tuple[Part, Counts]], list[PassChange]]:
    """Run the passes called ``names``.

    Returns the parts that ``part`` becomes, each with its counts, in the order in which they run, and what each pass
    changed. The graph of ``part`` may be changed.
    """
    parts, changes = [(part, count(part.model))], list[PassChange]()
    for each in PASSES:
        if each.name not in names:
            continue
        outcome = list[tuple[Part, Counts]]()
        for before, counts in parts:
            result = each(before)
            if result.change is None:
                outcome.append((before, counts))
                continue
            made = [(after, count(after.model)) for after in result.parts]
            outcome += made
            name = before.component.name
            changes.append(PassChange(each.name, name, counts, {a.component.name: counted for a, counted in made}))
            report(f"{name}: {result.change}")
        parts = outcome
    return parts, changes
