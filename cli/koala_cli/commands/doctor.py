"""``koala doctor``: what this machine can build and run, and what to install for it."""

from __future__ import annotations

import itertools
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from koala_bundle.targets import Target
from koala_cli.options import AsJson, Device
from koala_cli.screen import megabytes, say, say_json, stdout, table
from koala_machine.driver import Driver, find_gpu, query_driver
from koala_machine.support import (
    installed_version,
    installed_wheel,
    recommended_wheel,
    requirement,
    suitable_wheel,
    supports,
)

_EXPORT_NEEDS = ("torch", "diffusers", "transformers", "onnx")
_PACKAGES = ("koala-trt", "numpy", "tokenizers", "pillow", "cuda-bindings", *_EXPORT_NEEDS)


def doctor(device: Device = None, as_json: AsJson = False) -> None:
    """Show what this machine can build and run, and what to install.

    For each target: the extra of koala-trt that fits the GPU and its driver, the package that it brings, and why this
    machine cannot build or run it.
    """
    driver = query_driver() if device is None else find_gpu(device)
    facts = _facts(driver)
    targets = _targets(driver, device or 0)
    missing = [package for package in _EXPORT_NEEDS if facts[package] == "-"]
    export = f"install {', '.join(missing)}: `pip install koala-trt[export]`" if missing else "yes"
    install = _advice(driver)
    if as_json:
        say_json({"machine": facts, "export": export, "targets": targets, "install": install})
        return
    machine = table("this machine", "")
    for name, value in facts.items():
        machine.add_row(name, value)
    stdout.print(machine)
    abilities = table("target", "extra", "package", "installed", "build", "run")
    for name, answer in targets.items():
        words = ("yes" if answer[verb] == "yes" else "no" for verb in ("build", "run"))
        abilities.add_row(name, answer["extra"], answer["package"], answer["installed"], *words)
    stdout.print(abilities)
    say(f"export: {export}")
    for name, answer in targets.items():
        for line in _reasons(name, answer["build"], answer["run"]):
            say(line)
    say(install)


def _targets(driver: Driver, device: int | str) -> dict[str, dict[str, str]]:
    """Return for each target the extra and package that fit, what is installed, and what it can do or why not."""
    from koala_engines.availability import obstacles
    from koala_runtime.preflight import obstacle

    return {
        target.name: {
            **_wheel(target, driver),
            "build": problem or "yes",
            "run": obstacle(target, device) or "yes",
        }
        for target, problem in obstacles(device).items()
    }


def _wheel(target: Target, driver: Driver) -> dict[str, str]:
    fitting, installed = suitable_wheel(target, driver), installed_wheel(target)
    if target.built_on_its_gpu and not (driver.gpu and supports(target, driver.gpu)):
        fitting = None
    return {
        "extra": fitting.extra if fitting else "-",
        "package": requirement(fitting) if fitting else "-",
        "installed": f"{installed.package} {installed_version(installed)}" if installed else "-",
    }


def _reasons(target: str, build: str, run: str) -> list[str]:
    """Return a sentence for what a target cannot do; one for both where the reason is the same."""
    if build == run != "yes":
        return [f"{target} can neither be built nor run here: {build}"]
    reasons = {"be built": build, "run": run}
    return [f"{target} cannot {verb} here: {reason}" for verb, reason in reasons.items() if reason != "yes"]


def _advice(driver: Driver) -> str:
    """Return what to install for the best target of this machine, or that it is there."""
    wheel = recommended_wheel(driver)
    if installed_wheel(wheel.target) == wheel:
        return f"target {wheel.target} is the best for this machine, and its package {wheel.package} is installed"
    best = f"target {wheel.target} is the best for this machine: `pip install koala-trt[{wheel.extra}]`"
    return f"{best} brings {requirement(wheel)}"


def _facts(driver: Driver) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": str(driver.gpu) if driver.gpu else f"none: {driver.problem}",
        "gpu memory": megabytes(driver.memory_bytes) if driver.gpu else "-",
        **_other_gpus(driver),
        "cuda driver": driver.cuda_version or "-",
        "free disk": megabytes(shutil.disk_usage(Path.cwd()).free),
        **{package: _version(package) for package in _PACKAGES},
    }


def _other_gpus(driver: Driver) -> dict[str, str]:
    """Return the GPUs that ``--device`` would choose."""
    others = {}
    for ordinal in itertools.count() if driver.gpu else ():
        other = query_driver(device=ordinal)
        if other.gpu is None:
            break
        if ordinal != driver.ordinal:
            others[f"gpu {ordinal}"] = f"{other.gpu}, with --device {ordinal}"
    return others


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
