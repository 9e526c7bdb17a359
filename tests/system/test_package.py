"""The wheel, installed bare and then with the extra ``cpu``, draws a picture and brings nothing of torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("onnxruntime", "torch", "diffusers", "transformers", "onnx", "tensorrt", "accelerate", "scipy")


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_bare_wheel(tmp_path: Path, bundle: Callable[..., Path]) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "build", "bundles", "__pycache__", "tests")
    )
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert packages == {path.parent.name for path in ROOT.glob("*/koala_*/py.typed")}
    assert {"koala_bundle", "koala_runtime", "koala_cli"} < packages
    assert "koala_verify/page.html" in names
    assert all(f"{package}/py.typed" in names for package in packages)

    venv.create(tmp_path / "bare", with_pip=True)
    programs = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    check = f"from importlib.util import find_spec; print([name for name in {HEAVY!r} if find_spec(name)])"
    assert run(programs / "python", "-c", check).strip() == "[]"

    picture = tmp_path / "koala.png"
    koala = programs / "koala"
    draw = (koala, "run", bundle("koala-700m-like"), "a koala", "--seed", "0", "--output", picture)
    assert "`pip install koala-trt[cpu]`" in run(*draw, code=2)
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    run(*draw)
    assert picture.stat().st_size > 1000
    run(koala, "inspect", bundle("koala-700m-like"))
    assert "pip install koala-trt[export]" in run(koala, "doctor", "--json").replace("\n", " ")
    for command in (("export", "koala-700m", tmp_path / "new"), ("engines", bundle("koala-700m-like"))):
        assert "install them with `pip install koala-trt[export]`" in run(koala, *command, code=2)
    size = sum(path.stat().st_size for path in (tmp_path / "bare").rglob("*") if path.is_file())
    print(f"\nbare environment: {size / 1e6:.0f} MB")
    shutil.rmtree(tmp_path)
