"""What is told of a built plan: kernels by kind, and a loud word where a fusion or float16 got lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from koala_bundle.counts import Counts, Product
from koala_bundle.engine_record import read_engine_record
from koala_bundle.errors import BuildError
from koala_bundle.files import write_sealed
from koala_bundle.manifest import ComponentEntry, read_manifest
from koala_bundle.targets import RTX
from koala_engines.build import build_engines
from koala_engines.kernels import losses
from koala_engines.options import BuildOptions


def entry(*products: Product, attentions: int = 0) -> ComponentEntry:
    return ComponentEntry("denoiser", (), (), counts=Counts(1, 0, attentions, 0, products))


HALF, SINGLE = Product("Conv", "float16", 100, 1, 1), Product("Conv", "float32", 100, 1, 1)


def test_what_is_lost() -> None:
    assert losses(entry(HALF, attentions=2), "fp16", {"_gemm_mha_v2": 2, "__myl_Move": 9}) == []
    (fusion,) = losses(entry(HALF, attentions=2), "fp16", {"_gemm_mha_v2": 1})
    assert fusion.startswith("1 of 2 attentions are fused")
    (half,) = losses(entry(HALF, SINGLE), "fp16", {})
    assert half == "only 50% of its operations are float16"
    assert losses(entry(SINGLE, attentions=2), "fp32", {}) == []  # a float32 attention has no fused kernel


@pytest.fixture(scope="module")
def half(bundle: Callable[..., Path]) -> Path:
    pytest.importorskip("tensorrt_rtx")
    return bundle("koala-tiny")


def test_every_attention_of_a_step_is_fused(half: Path) -> None:
    told: list[str] = []
    build_engines(half, RTX, report=told.append)
    manifest, record = read_manifest(half), read_engine_record(half, RTX)
    for name in ("text_encoder", "text_encoder_2", "denoiser"):
        counts, kernels = manifest.component(name).counts, record.plans[name].kernels
        assert sum(times for kind, times in kernels.items() if "mha" in kind) == counts.attentions > 0
        assert not [line for line in told if line.startswith(f"WARNING: rtx: {name}")]
    for entry in manifest.components:  # of scratch at least as much as it writes, and not gigabytes
        scratch = record.plans[entry.name].activation_bytes
        assert scratch is not None
        assert 0 < scratch < 1e9, entry.name


def test_strict_refuses_what_is_lost(half: Path, tmp_path: Path) -> None:
    """Float32 graphs under the name of a float16 bundle: what a faulty export would be."""
    copy = shutil.copytree(half, tmp_path / "bundle", ignore=shutil.ignore_patterns("rtx", ".*"))  # .*: a build at work
    manifest = read_manifest(copy)

    def single(one: ComponentEntry) -> ComponentEntry:
        products = tuple(replace(product, dtype="float32") for product in one.counts.products)
        return replace(one, counts=replace(one.counts, products=products))

    write_sealed(copy / "manifest.json", replace(manifest, components=tuple(map(single, manifest.components))))
    with pytest.raises(BuildError, match=r"rtx: text_encoder: .* found only 0% of its operations are float16"):
        build_engines(copy, RTX, BuildOptions(strict=True))
    assert not (copy / "engines" / "rtx").exists()
    told: list[str] = []
    build_engines(copy, RTX, report=told.append)
    assert any(line.startswith("WARNING: rtx: denoiser: only 0%") for line in told)
    with pytest.raises(BuildError, match="only 0% of its operations are float16"):
        build_engines(copy, RTX, BuildOptions(strict=True))  # built before, and looked at again
