"""Passes over a torch model before it is traced; each keeps what the model computes, and can be left out.

- ``rescale``: a VAE that asks for float32 is scaled to fit float16

To add a pass, define a ``base.ModulePass`` in a file of its own and add it to ``MODULE_PASSES``.
"""

from __future__ import annotations

from koala_export.module_passes.base import ModulePass
from koala_export.module_passes.rescale import RESCALE

MODULE_PASSES: tuple[ModulePass, ...] = (RESCALE,)
"""In the order in which they run."""
