"""The container image, compose and Kubernetes: by their own linters, beside what they must agree with, and for real.

No registry is reached, so no image is built: what the Dockerfile runs is run here, into an empty environment, and what
it starts is started, as another user who cannot write into the bundle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from koala_bundle.checked import CACHE_VARIABLE
from koala_cli.commands.serve import API_KEY_VARIABLE
from koala_cli.main import app
from koala_machine.support import WHEELS
from koala_serve.settings import Settings
from koala_tiny.scenes import words
from tests.support.judge import judge
from tests.support.koala_tiny import requests
from tests.support.server import STARTS_WITHIN, Served, free_port


def is_root() -> bool:
    return os.name != "nt" and os.geteuid() == 0


def runs_as_user(python: str) -> bool:
    """Whether the image's user, or this one where it cannot be another, can run ``python``."""
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        # setpriv itself still starts what its user may not; env does not.
        return subprocess.run([*AS_USER, "env", python, "-c", check], cwd="/", check=False).returncode == 0
    except OSError:
        return False


ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
DEPLOY = ROOT / "examples" / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
VARIANTS = ("cpu", "gpu")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Instructions of the final stage, by name; the last of each counts.
LAST_STAGE = dict(re.findall(r"^([A-Z]+) (.+)", DOCKERFILE.rpartition("\nFROM ")[2].replace("\\\n", ""), re.MULTILINE))
HEALTH = json.loads(LAST_STAGE["HEALTHCHECK"].partition("CMD ")[2])
COMMAND = json.loads(LAST_STAGE["ENTRYPOINT"]) + json.loads(LAST_STAGE["CMD"])
USER = LAST_STAGE["USER"].partition(":")[0]
# Nobody else reads what lies in root's home, as a Python may.
AS_USER = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs"] if is_root() else []
PYTHON = next(filter(runs_as_user, (sys.executable, "/usr/bin/python3")), None)


def lint(*command: str | Path) -> None:
    done = subprocess.run([PROGRAMS / command[0], *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def options_of_serve() -> set[str]:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts if option.startswith("-")}


def objects(variant: str) -> list[Any]:
    """Return the objects that ``kubectl apply -k`` would send."""
    text = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "kubernetes" / variant], capture_output=True, text=True, check=True
    ).stdout
    return [*yaml.safe_load_all(text)]


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# --- linters


def test_hadolint() -> None:
    lint("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile")


def test_compose_has_its_schema() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_each_manifest_has_its_schema() -> None:
    for name in ("deployment", "service"):
        manifest = yaml.safe_load((DEPLOY / "kubernetes" / "cpu" / f"{name}.yaml").read_text("utf-8"))
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest | {"spec": manifest["spec"] | {"unknown": 1}}, "1.33", strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_kubectl_would_send_has_its_schema(variant: str) -> None:
    sent = objects(variant)
    assert {each["kind"] for each in sent} == {"Deployment", "Service"}
    for each in sent:
        kubernetes_validate.validate(each, "1.33", strict=True)
    (deployment,) = (each for each in sent if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("koala-trt:")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (variant == "gpu")


# --- what they say is what the code does


def test_the_image_holds_the_packages_of_the_wheel() -> None:
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert taken == packages | {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], "LICENSE"}


def test_the_image_starts_what_the_command_line_has() -> None:
    assert COMMAND[:2] == ["koala", "serve"]
    assert {word for word in COMMAND if word.startswith("-")} <= options_of_serve()
    extras = {wheel.extra for wheel in WHEELS} & set(PROJECT["project"]["optional-dependencies"])
    named = set(re.findall(r"\w+", DOCKERFILE.partition("name is EXTRA: ")[2].partition(".")[0])) - {"or"}
    assert named <= extras
    assert f"{CACHE_VARIABLE}=/cache" in LAST_STAGE["ENV"]
    assert LAST_STAGE["STOPSIGNAL"] == "SIGTERM"
    assert int(USER) > 0


def test_compose_agrees() -> None:
    services = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    assert {*services} == {*VARIANTS}
    for service in services.values():
        assert API_KEY_VARIABLE in service["environment"]
        assert seconds(service["stop_grace_period"]) > Settings.drain
        assert service["read_only"]
        assert {"/tmp"} == {*service["tmpfs"]}
        assert {each if isinstance(each, str) else each["target"] for each in service["volumes"]} == {
            "/bundle",
            "cache:/cache",
        }
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT


def test_kubernetes_agrees() -> None:
    pod = yaml.safe_load((DEPLOY / "kubernetes/cpu/deployment.yaml").read_text("utf-8"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    assert arguments[: len(COMMAND) - 1] == COMMAND[1:]
    assert {word for word in arguments if word.startswith("-")} <= options_of_serve()
    drain, wait = float(arguments[arguments.index("--drain") + 1]), container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > drain + float(wait[1])
    assert str(pod["securityContext"]["runAsUser"]) == USER
    assert [each["name"] for each in container["env"]] == [API_KEY_VARIABLE]
    assert {each["mountPath"] for each in container["volumeMounts"]} == {"/bundle", "/cache", "/tmp"}
    probes = {name: each["httpGet"]["path"] for name, each in container.items() if name.endswith("Probe")}
    assert probes == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


# --- for real


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that another user can read; pytest's own cannot be."""
    with TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def installed(folder: Path) -> Path:
    """Run the Dockerfile's own installation, with its two folders elsewhere, on a copy of what it would copy."""
    source = folder / "source"
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        path = ROOT / line[1:]
        if line.startswith("!") and path.is_dir():
            shutil.copytree(path, source / line[1:], ignore=shutil.ignore_patterns("__pycache__"))
        elif line.startswith("!"):
            source.mkdir(exist_ok=True)
            shutil.copy(path, source)
    (script,) = re.findall(
        r"^RUN --mount=\S+ \\\n((?:.+\\\n)+.+)", DOCKERFILE.partition("\nFROM python:${PYTHON}\n")[0], re.MULTILINE
    )
    script = script.replace("/opt/koala", f"{folder}/koala").replace("/wheels", f"{folder}/wheels")
    (folder / "base").mkdir()
    (folder / "base" / "python").symlink_to(PYTHON)
    path = f"{folder}/base:{PROGRAMS}:{os.environ['PATH']}"
    subprocess.run(["sh", "-euc", script], cwd=source, env=os.environ | {"PATH": path, "EXTRA": "cpu"}, check=True)
    return folder / "koala" / "bin"


@pytest.mark.full
@pytest.mark.skipif(PYTHON is None, reason="no Python that another user can run")
def test_what_the_image_starts(folder: Path, installed: Path, bundle: Callable[..., Path]) -> None:
    ours, cache, port = folder / "bundle", folder / "cache", free_port()
    shutil.copytree(bundle("koala-tiny"), ours, ignore=shutil.ignore_patterns("onnx"))
    cache.mkdir()
    cache.chmod(0o777)
    for path in [*ours.rglob("*"), ours]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    env = {
        "PATH": f"{installed}:/usr/bin:/bin",
        CACHE_VARIABLE: str(cache),
        "HOME": "/nonexistent",
        "KOALA_API_KEY": "k",
    }
    command = [str(ours) if word == "/bundle" else word for word in COMMAND]
    log = folder / "log"

    def in_image(*words: str, **options: Any) -> Any:
        return subprocess.Popen([*AS_USER, *words], env=env, cwd="/", **options)

    with log.open("wb") as output:
        process = in_image(*command, "--port", str(port), stdout=output, stderr=subprocess.STDOUT)
    try:
        served = Served(process, port, log)
        served.wait_until_ready()
        health = [word.replace("8000", str(port)) for word in HEALTH]
        assert in_image(*health).wait(STARTS_WITHIN) == 0
        wanted = requests(1, 1)[0]
        body = {"prompt": words(wanted), "seed": 0, "response_format": "url"}
        status, answer = served.post("/v1/images/generations", body, Authorization="Bearer k")
        assert status == 200, answer
        ask = urllib.request.Request(answer["data"][0]["url"], headers={"Authorization": "Bearer k"})
        with urllib.request.urlopen(ask) as file, Image.open(file) as picture:
            assert all(judge(np.asarray(picture), wanted).values())
        process.send_signal(signal.SIGTERM)
        assert process.wait(Settings.drain) == 0, log.read_text()
        assert in_image(*health, stderr=subprocess.DEVNULL).wait(STARTS_WITHIN) == 1, "nobody answers any more"
    finally:
        process.kill()
        process.wait()
    assert [*cache.rglob("*.json")], "what was checked is remembered"
    assert all(line["level"] == "info" for line in served.lines())
