"""The NVIDIA driver is asked through its C interface, which a small library stands in for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from koala_bundle.engine_record import GPU
from koala_machine.driver import Driver, query_driver

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
