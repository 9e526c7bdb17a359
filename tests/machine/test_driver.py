"""The NVIDIA driver is asked through its C interface, which a small library stands in for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from koala_bundle.engine_record import GPU
from koala_bundle.errors import TargetError
from koala_machine.driver import Driver, find_gpu, query_driver, query_uuid

LIBCUDA = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, NAME, size); return 0; }
int cuDeviceGetAttribute(int *value, int of, int device) { *value = of == 75 ? 8 : of == 76 ? 9 : -1; return 0; }
#ifdef UUID
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, device, 16); return UUID; }
#endif
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 7 ? (size_t)24 << 30 : 0; return 0; }
"""


needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build a stand-in for libcuda")
RTX_4090, MIG = "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"


def stand_in(folder: Path, name: str = RTX_4090, **numbers: int) -> str:
    """Compile a library for a machine with these answers."""
    (folder / "cuda.c").write_text(LIBCUDA)
    library = folder / f"libcuda-{len([*folder.iterdir()])}.so"
    flags = [f"-D{key}={number}" for key, number in {"INIT": 0, "COUNT": 1, **numbers}.items()]
    command = ["cc", "-shared", "-fPIC", f'-DNAME="{name}"', *flags, "-o", str(library), str(folder / "cuda.c")]
    subprocess.run(command, check=True)
    return str(library)


@needs_compiler
def test_the_driver_is_asked_through_its_c_interface(tmp_path: Path) -> None:
    for init, count, answer in (
        (0, 1, Driver("13.0", GPU("NVIDIA GeForce RTX 4090", "8.9"), 24 << 30, None)),
        (100, 1, Driver("13.0", None, 0, "the NVIDIA driver shows no GPU (CUresult 100)")),
        (0, 0, Driver("13.0", None, 0, "the NVIDIA driver shows no GPU (CUresult 0)")),
    ):
        assert query_driver(stand_in(tmp_path, INIT=init, COUNT=count)) == answer


@needs_compiler
def test_a_gpu_by_its_index_or_uuid(tmp_path: Path) -> None:
    library = stand_in(tmp_path, COUNT=2, UUID=0)
    second = "GPU-08080808-0808-0808-0808-080808080808"
    for device in (1, "1", second, "gpu-0808"):
        assert query_driver(library, device=device).ordinal == 1
        assert query_uuid(library, device=device) == second
    assert query_uuid(stand_in(tmp_path, MIG, UUID=0)) == "MIG-07070707-0707-0707-0707-070707070707"
    for no_uuid in (stand_in(tmp_path), stand_in(tmp_path, UUID=1), stand_in(tmp_path, COUNT=0, UUID=0), "libnone.so"):
        assert query_uuid(no_uuid) is None


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(TargetError, match=r"^device 99: expected an NVIDIA GPU, found .*; pass the index or UUID of a"):
        find_gpu(99)


def test_the_driver_of_this_machine() -> None:
    assert query_driver("libnone.so") == Driver(None, None, 0, "no NVIDIA driver (libnone.so cannot be loaded)")
    here = query_driver()
    assert (here.gpu is None) == (here.problem is not None) == (here.memory_bytes == 0)
