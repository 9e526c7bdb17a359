"""What a compiler made of a component: its kernels by kind, and whether a fusion or float16 got lost on the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from koala_bundle.manifest import ComponentEntry

# TensorRT-RTX notes each kernel's name in the plan, readable and undocumented (seen in 1.7).
_FUNCTION = re.compile(rb"function=\{ name=(\S+) fqn=")
# So it does with each tensor between them: dimensions, offset in the scratch memory, strides and type.
_SCRATCH = re.compile(
    rb"dims=\{([^}]*)\} mem_prop=\d+ name=\S* offset=(\d+) rank0=\d+ "
    rb'region="devmem" stride_order=\{[^}]*\} strides=\{([^}]*)\} type=(\w+)'
)
_ITEM_BYTES = {b"half": 2, b"bf16": 2, b"float": 4, b"int32": 4, b"int64": 8, b"uint8": 1, b"int8": 1, b"bool": 1}
_LEAST_HALF = 0.9  # of a float16 component's operations; the sampler around the U-Net is float32 but has no products


def of_rtx_plan(plan: bytes) -> dict[str, int]:
    """Return how often each kind of kernel occurs in a plan of TensorRT-RTX, most frequent first."""
    return by_kind(name.decode() for name in _FUNCTION.findall(plan))


def of_graph(path: Path) -> dict[str, int]:
    """Return how often each operation occurs in an ONNX file that ONNX Runtime optimised."""
    return by_kind(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def losses(entry: ComponentEntry, precision: str, kernels: dict[str, int]) -> list[str]:
    """Return in plain words what the compiler should have kept and did not; for plans of float16 components.

    A float32 attention has no fused kernel, so nothing is lost there.
    """
    found = []
    half = entry.counts.half_share
    if precision == "fp16" and entry.counts.flops and half < _LEAST_HALF:
        found.append(f"only {half:.0%} of its operations are float16")
    fused = sum(times for name, times in kernels.items() if "mha" in name)
    if half >= _LEAST_HALF and fused < entry.counts.attentions:
        found.append(
            f"{fused} of {entry.counts.attentions} attentions are fused; the others hold their scores in memory"
        )
    return found


def scratch_of_rtx_plan(plan: bytes) -> int | None:
    """Return the bytes of scratch memory that a TensorRT-RTX plan uses; None if it lists no tensors."""
    ends = []
    for dims, offset, strides, dtype in _SCRATCH.findall(plan[: plan.find(b"main {")]):
        steps = zip(map(int, dims.split()), map(int, strides.split()), strict=True)
        items = sum((size - 1) * stride for size, stride in steps) + 1
        ends.append(int(offset) + items * _ITEM_BYTES.get(dtype, 4))
    return max(ends, default=None)


def by_kind(names: Iterable[str]) -> dict[str, int]:
    """Count names without the numbers of their instances."""
    return dict(Counter(re.sub(r"_0x[0-9a-f]+.*$|_\d+$", "", name) for name in names).most_common())
