"""``koala doctor``: what this machine can build and run."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from koala_cli.options import AsJson, Device
from koala_cli.screen import megabytes, say_json, stdout, table
from koala_machine.driver import Driver, find_gpu, query_driver

_PACKAGES = (
    *("koala-trt", "numpy", "onnxruntime", "tokenizers", "pillow", "torch", "diffusers", "transformers", "onnx"),
    *("tensorrt", "tensorrt-rtx-cu13"),
)
_EXPORT_NEEDS = ("torch", "diffusers", "transformers", "onnx")


def doctor(device: Device = None, as_json: AsJson = False) -> None:
    """Show what this machine can build and run, and why not."""
    from koala_engines.availability import obstacles
    from koala_runtime.preflight import obstacle

    driver = query_driver() if device is None else find_gpu(device)
    facts = _facts(driver)
    targets = {
        target.name: {"build": problem or "yes", "run": obstacle(target, device or 0) or "yes"}
        for target, problem in obstacles(device or 0).items()
    }
    missing = [package for package in _EXPORT_NEEDS if facts[package] == "-"]
    export = f"install {', '.join(missing)}: `pip install koala-trt[export]`" if missing else "yes"
    if as_json:
        say_json({"machine": facts, "export": export, "targets": targets})
        return
    machine = table("this machine", "")
    for name, value in facts.items():
        machine.add_row(name, value)
    stdout.print(machine)
    abilities = table("", "build", "run")
    abilities.add_row("export", export, "-")
    for target, answer in targets.items():
        abilities.add_row(target, answer["build"], answer["run"])
    stdout.print(abilities)


def _facts(driver: Driver) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": str(driver.gpu) if driver.gpu else f"none: {driver.problem}",
        "gpu memory": megabytes(driver.memory_bytes) if driver.gpu else "-",
        "cuda driver": driver.cuda_version or "-",
        "free disk": megabytes(shutil.disk_usage(Path.cwd()).free),
        **{package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
