"""Manifests of every preset, and a record of engines, as they would be written; no bundle is made for them."""

from __future__ import annotations

from koala_bundle.counts import Counts, Product
from koala_bundle.engine_record import GPU, EngineKey, EngineRecord, PlanEntry
from koala_bundle.files import FileEntry
from koala_bundle.manifest import ComponentEntry, Manifest, Origin, PassChange
from koala_bundle.spec import Profile, Sampling
from koala_bundle.tensors import components
from koala_export.configs import read_spec
from koala_export.presets import PRESETS, configs

FILES = {"onnx/a.onnx": FileEntry("0" * 64, 3), "onnx/a.onnx.data": FileEntry("f" * 64, 2**33)}
KEY = EngineKey("tensorrt", "11.0", "linux", GPU("NVIDIA L4", "8.9"), {"level": "3"})
PLAN = PlanEntry(("denoiser.plan",), {"onnx/a.onnx": "0" * 64}, 12.5, {"mha": 3}, 1_000, (0.05, 0.06))
RECORD = EngineRecord(1, "tensorrt", KEY, {"denoiser": PLAN}, FILES)
COUNTS = Counts(7, 12, 1, 2, (Product("MatMul", "float16", 10**9, 10**6, 3),))
PROFILES = [Profile(), Profile(512, 768, 3, "fp32", cfg=False), Profile(64, 64, 2, "fp32")]


def manifest_of(preset: str, profile: Profile) -> Manifest:
    spec = read_spec(configs(PRESETS[preset]))
    entries = tuple(
        ComponentEntry(c.name, c.inputs, c.outputs, 0, tuple(FILES), COUNTS) for c in components(spec, profile)
    )
    origin, sampling = Origin("ab", {"torch": "2.9"}), Sampling(25, 7.5)
    traced, changes = {"denoiser": COUNTS}, (PassChange("hoist", "denoiser", COUNTS, {"prologue": COUNTS}),)
    return Manifest(1, origin, "passed", spec, profile, sampling, ("hoist",), traced, changes, entries, FILES)


MANIFESTS = [manifest_of(preset, profile) for preset in PRESETS for profile in PROFILES]
