"""The GPU memory that a bundle takes, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from koala_bundle.engine_record import EngineRecord
from koala_bundle.errors import DeviceError
from koala_bundle.manifest import Manifest
from koala_runtime.program import DENOISER, PREVIEW_DECODER, VAE_DECODER, VAE_ENCODER, make_program
from koala_runtime.samplers import default_table


@dataclass(frozen=True)
class Budget:
    """Bytes of device memory; ``weights`` and ``activations`` by component, ``tensors`` all that the components share.

    ``activations`` are None where a plan shows them only once it is loaded. The driver's own memory (some hundreds of
    megabytes for a context and its kernels) is not included.
    """

    weights: Mapping[str, int]
    activations: Mapping[str, int | None]
    tensors: int

    def total(self, *, low_memory: bool = False) -> int:
        """Return the most that is in use at once: everything, or with ``low_memory`` the largest phase."""
        phases = _phases([*self.weights]) if low_memory else [[*self.weights]]
        return self.tensors + max(
            sum(self.weights[name] for name in phase) + max(self.activations[name] or 0 for name in phase)
            for phase in phases
        )


def budget(manifest: Manifest, record: EngineRecord, steps: int | None = None) -> Budget:
    """Return what a picture takes with the plans of ``record`` and its own scheduler.

    ``steps`` default to the bundle's own.
    """
    table = default_table(manifest, steps)
    tables = ("noise",) if table.draws.any() else ()
    program = make_program(manifest.components, len(table.timesteps), tables=tables)
    plans = {entry.name: record.plans[entry.name] for entry in manifest.components}  # in the order of a picture
    return Budget(
        {name: sum(record.files[file].size for file in plan.files) for name, plan in plans.items()},
        {name: plan.activation_bytes for name, plan in plans.items()},
        program.nbytes,
    )


def check_free(needed: Budget, free: int | None, *, low_memory: bool) -> None:
    """Raise DeviceError with the numbers if ``free`` bytes are too few; spilling into host memory would be slow."""
    total = needed.total(low_memory=low_memory)
    if free is None or total <= free:
        return
    less = needed.total(low_memory=True)
    can = not low_memory and less <= free
    raise DeviceError(
        "GPU memory",
        expected=f"{total / 1e6:,.0f} MB free",
        found=f"{free / 1e6:,.0f} MB",
        fix=f"pass low_memory=True, which takes {less / 1e6:,.0f} MB" if can else "close what else runs on this GPU",
    )


def _phases(names: list[str]) -> list[list[str]]:
    """Split into what comes before the steps, the steps and previews, the decoding; and the encoding of a picture."""
    phases = ((VAE_ENCODER,), (DENOISER, PREVIEW_DECODER), (VAE_DECODER,))
    others = [name for name in names if not any(name in phase for phase in phases)]
    return [found for phase in (others, *phases) if (found := [name for name in phase if name in names])]
