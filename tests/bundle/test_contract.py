"""What the stages share: the codec, the table of tensors, files that are whole or absent, the GPU's name."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import koala_bundle.errors
import koala_runtime
from koala_bundle.codec import CodecError, from_json, to_json
from koala_bundle.counts import Counts, Product
from koala_bundle.engine_record import GPU, EngineKey, EngineRecord, PlanEntry
from koala_bundle.errors import BundleError
from koala_bundle.files import FileEntry, check_files, file_entry, inside, write_atomic
from koala_bundle.manifest import ComponentEntry, Manifest, Origin, PassChange
from koala_bundle.spec import Profile, Sampling
from koala_bundle.tensors import IOTensor, components
from koala_export.configs import read_spec
from koala_export.presets import PRESETS, configs
from koala_machine.driver import Driver, query_driver

FILES = {"onnx/a.onnx": FileEntry("0" * 64, 3), "onnx/a.onnx.data": FileEntry("f" * 64, 2**33)}
KEY = EngineKey("tensorrt", "11.0", "linux", GPU("NVIDIA L4", "8.9"), {"level": "3"}, {"onnx/a.onnx": "0" * 64})
RECORD = EngineRecord(1, "tensorrt", KEY, {"denoiser": PlanEntry(("denoiser.plan",), 12.5, {"mha": 3}, 1_000)}, FILES)
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
MANIFEST: Any = to_json(MANIFESTS[0])
HUGE = "sampling.guidance_scale: expected float, found int 1" + "0" * 75  # what was found is cut at 80 characters


@pytest.mark.parametrize("document", [*MANIFESTS, RECORD, replace(RECORD, key=replace(KEY, gpu=None))])
def test_json_and_back(document: Manifest | EngineRecord) -> None:
    assert from_json(type(document), json.loads(json.dumps(to_json(document)))) == document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["spec", "unet", "mid_block"], ..., "spec.unet.mid_block: expected a value, found nothing"),
        (["profile", "depth"], 1, "profile.depth: expected no such field, found a value"),
        (["schema_version"], True, "schema_version: expected int, found bool True"),
        (["sampling", "guidance_scale"], "7", "sampling.guidance_scale: expected float, found str '7'"),
        (["sampling"], None, "sampling: expected an object, found NoneType None"),
        (["files", "onnx/a.onnx", "size"], None, "files.onnx/a.onnx.size: expected int, found NoneType None"),
        (["components"], {}, "components: expected a list, found dict {}"),
        (["components", 2, "inputs", 0, "name"], 4, "components[2].inputs[0].name: expected str, found int 4"),
        pytest.param(["sampling", "guidance_scale"], 10**400, HUGE, id="10^400"),
    ],
)
def test_json_of_another_shape_is_told_by_field(path: list[Any], value: Any, message: str) -> None:
    data = deepcopy(MANIFEST)
    (holder := reduce(getitem, path[:-1], data))[path[-1]] = value
    if value is ...:
        del holder[path[-1]]
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        from_json(Manifest, data)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
any_json = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(data=any_json, section=st.sampled_from(sorted(MANIFEST)))
def test_arbitrary_json_raises_codec_errors_only(data: Any, section: str) -> None:
    for cls in (Manifest, EngineRecord):
        with pytest.raises(CodecError, match=r": expected .*, found "):
            from_json(cls, data)
    try:
        from_json(Manifest, MANIFEST | {section: data})
    except CodecError as error:
        assert error.field.startswith(section)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_components_meet_by_name(manifest: Manifest) -> None:
    table, profile = manifest.components, manifest.profile
    known: dict[str, IOTensor] = {}
    for component in table:
        for tensor in component.inputs:
            assert known.setdefault(tensor.name, tensor) == tensor, "an output feeds every later input of its name"
        assert not known.keys() & {tensor.name for tensor in component.outputs}
        known |= {tensor.name: tensor for tensor in component.outputs}
    host = known.keys() - {tensor.name for component in table for tensor in component.outputs}
    rows = {"input_ids", "input_ids_2", "prompt_mask", "time_ids"}
    guidance = {"guidance_scale"} if profile.cfg else set()
    assert host == rows | guidance | {"latents", "sigma", "sigma_next", "timestep"}
    for name in rows | {"hidden_states", "hidden_states_2", "text_embeds"}:
        assert known[name].shape[0] == profile.batch * (2 if profile.cfg else 1)
    assert known["latents"].shape == (profile.batch, 4, profile.height // 8, profile.width // 8)


def test_bytes_of_a_tensor() -> None:
    for dtype, size in (("float32", 96), ("float16", 48), ("int32", 96), ("uint8", 24)):
        assert IOTensor("x", dtype, (2, 3, 4)).nbytes == size


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "//host/x", "C:\\x", "C:x", "a\\..\\x"])
def test_a_name_cannot_lead_out_of_a_bundle(tmp_path: Path, name: str) -> None:
    wanted = f"file name {name!r}: expected a path inside the bundle, found one outside; fix it."
    with pytest.raises(BundleError, match=f"^{re.escape(wanted)}$"):
        inside(tmp_path, name, "fix it")


def test_a_damaged_file_is_told_by_what_is_wrong(tmp_path: Path) -> None:
    (path := tmp_path / "b.bin").write_bytes(b"abc")
    files = {"b.bin": file_entry(path)}
    check_files(tmp_path, files, "fix it")
    digests = "SHA-256 ba7816bf8f01cfea..., found a52d159f262b2c6d..."  # of abc and abd
    for content, found in ((b"abcd", "3 bytes, found 4 bytes"), (b"abd", digests), (b"", "3 bytes, found 0 bytes")):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=rf"^{re.escape(f'{path}: expected {found}; fix it.')}$"):
            check_files(tmp_path, files, "fix it")
    path.unlink()
    with pytest.raises(BundleError, match=rf"^{re.escape(f'{path}: expected a file of 3 bytes, found no file; ')}"):
        check_files(tmp_path, files, "fix it")


def test_a_write_that_fails_leaves_the_old_bytes(tmp_path: Path) -> None:
    """The system itself refuses: files of this process may have 64 bytes."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    write_atomic(path := tmp_path / "manifest.json", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(path, b"n" * 65)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"


def test_the_runtime_offers_what_it_lists() -> None:
    exec("from koala_runtime import *", offered := dict[str, Any]())
    assert offered.keys() - {"__builtins__"} == set(koala_runtime.__all__)
    errors = {name for name, kind in vars(koala_bundle.errors).items() if isinstance(kind, type)}
    assert errors <= offered.keys(), "every error that a product catches"
    assert {"Pipeline", "PipelineOutput", "Steps", "read_recipe"} <= offered.keys()
    with pytest.raises(AttributeError, match="module 'koala_runtime' has no attribute 'pipe'"):
        _ = koala_runtime.pipe


def test_the_ground_floor_imports_the_standard_library_alone() -> None:
    paths = [*Path(koala_bundle.__file__).parent.glob("*.py")]
    assert paths
    for path in paths:
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        others = {module for module in modules if not module.startswith("koala_bundle.")}
        assert {module.split(".")[0] for module in others} <= sys.stdlib_module_names, path


LIBCUDA = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA GeForce RTX 4090", size); return 0; }
int cuDeviceGetAttribute(int *value, int of, int device) { *value = of == 75 ? 8 : of == 76 ? 9 : -1; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 7 ? (size_t)24 << 30 : 0; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build a stand-in for libcuda")
def test_the_driver_is_asked_through_its_c_interface(tmp_path: Path) -> None:
    (tmp_path / "cuda.c").write_text(LIBCUDA)
    for init, count, answer in (
        (0, 1, Driver("13.0", GPU("NVIDIA GeForce RTX 4090", "8.9"), 24 << 30, None)),
        (100, 1, Driver("13.0", None, 0, "the NVIDIA driver shows no GPU (CUresult 100)")),
        (0, 0, Driver("13.0", None, 0, "the NVIDIA driver shows no GPU (CUresult 0)")),
    ):
        library = tmp_path / f"libcuda-{init}-{count}.so"
        flags = ["-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", "-o", str(library)]
        subprocess.run(["cc", *flags, str(tmp_path / "cuda.c")], check=True)
        assert query_driver(str(library)) == answer


def test_the_driver_of_this_machine() -> None:
    assert query_driver("libnone.so") == Driver(None, None, 0, "no NVIDIA driver (libnone.so cannot be loaded)")
    here = query_driver()
    assert (here.gpu is None) == (here.problem is not None) == (here.memory_bytes == 0)
