"""The same checkpoint and options give the same bytes wherever they are exported, and a rebuild has a reason.

One export runs in a process, folder and working directory of its own; nothing of those is in its bundle. It is held
against the bundle that all tests share, which this process or another one made, perhaps in another run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import onnx
import pytest
from safetensors.torch import load_file, save_file

from koala_bundle.engine_record import engine_folder, read_engine_record
from koala_bundle.errors import TargetError
from koala_bundle.files import write_sealed
from koala_bundle.manifest import read_manifest
from koala_bundle.targets import CPU, RTX
from koala_engines.availability import obstacles
from koala_runtime.selection import open_engines

OPTIONS = ("--height", "64", "--width", "96", "--precision", "fp32", "--steps", "4")  # as in tests.support.bundles
# Words that no weight, token or operator has by chance.
SOURCE, PLACE, USER = "checkpoint-quokka", "place-wombat", "user-bilby"


def start(*arguments: str, folder: Path | None = None, seed: str = "0") -> Popen[str]:
    """Start ``koala`` in a process of its own, in the working directory ``folder``."""
    command = [sys.executable, "-m", "koala_cli.main", *arguments]
    names = dict.fromkeys(("USER", "LOGNAME", "USERNAME"), USER)
    env = os.environ | names | {"PYTHONHASHSEED": seed}
    return Popen(command, cwd=folder, env=env, stdout=PIPE, stderr=PIPE, encoding="utf-8")


def koala(*arguments: str, folder: Path | None = None, seed: str = "0") -> str:
    """Run ``koala`` to the end, with exit code 0; return what it said on stderr, then on stdout."""
    process = start(*arguments, folder=folder, seed=seed)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return err + out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    """What lies beside ``folder``, and when it and everything in it was last written."""
    beside = {path.name: 0 for path in folder.parent.iterdir()}  # whose folder the lock file passed through
    return beside | {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.fixture(scope="module")
def twins(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path], bundle: Callable[..., Path]
) -> tuple[Path, Path]:
    """Two exports of two copies of a checkpoint: one by relative paths, one by absolute ones from another folder."""
    folder = tmp_path_factory.mktemp(PLACE)
    shutil.copytree(checkpoint("koala-700m-like"), folder / SOURCE)
    koala("export", SOURCE, "out/bundle", *OPTIONS, folder=folder, seed="1")
    return folder / "out" / "bundle", bundle("koala-700m-like")


@pytest.fixture
def own(tmp_path: Path, twins: tuple[Path, Path]) -> tuple[Path, Path]:
    """A checkpoint and its bundle that a test may change."""
    first = twins[0].parents[1]
    return shutil.copytree(first / SOURCE, tmp_path / SOURCE), shutil.copytree(twins[0], tmp_path / "out" / "bundle")


def test_same_bytes_from_anywhere(twins: tuple[Path, Path]) -> None:
    first, second = (contents(bundle) for bundle in twins)
    second = {name: data for name, data in second.items() if not name.startswith("engines/")}
    assert len(first) == 13  # 5 components in two files each, 2 tokenizers, the manifest
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()


def test_nothing_of_the_machine_is_inside(twins: tuple[Path, Path]) -> None:
    anywhere = re.compile("|".join((SOURCE, PLACE, USER, "site-packages", "dist-packages")).encode())
    # Weights have short words by chance: these are looked for in graphs and manifest only.
    readable = re.compile(rb"\w\.py\b|Traceback|File \"|stack_trace")
    for name, data in contents(twins[0]).items():
        assert not anywhere.search(data), (name, anywhere.search(data))
        if name.endswith((".onnx", "manifest.json")):
            assert not readable.search(data), (name, readable.search(data))


def messages(message: Any) -> Iterator[Any]:
    """A protobuf ``message`` and every one inside it, however deep."""
    yield message
    for field, value in message.ListFields():
        if field.message_type:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from messages(inner)


def test_graphs_carry_no_notes(twins: tuple[Path, Path]) -> None:
    for path in (twins[0] / "onnx").glob("*.onnx"):
        for message in messages(onnx.load(path, load_external_data=False)):
            assert not getattr(message, "doc_string", ""), message
            assert not list(getattr(message, "metadata_props", [])), message


def test_again_writes_nothing(twins: tuple[Path, Path]) -> None:
    before = times(twins[0])
    said = koala("export", SOURCE, "out/bundle", *OPTIONS, folder=twins[0].parents[1])
    assert "up to date (same checkpoint, options and versions)" in said
    assert "exporting" not in said
    assert times(twins[0]) == before


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--width", "72"), "profile changed"),
        (("--no-cfg",), "profile changed; sampling changed"),
        (("--steps", "7"), "sampling changed"),
        (("--timestep-spacing", "leading"), "spec changed"),
    ],
)
def test_another_option_is_named(own: tuple[Path, Path], option: tuple[str, ...], reason: str) -> None:
    source, bundle = own
    before = contents(bundle)
    with start("export", str(source), str(bundle), *OPTIONS, *option) as process:
        said = process.stderr.readline()
        process.kill()  # the reason is all that is wanted here
    assert said.rstrip().endswith(f"exporting: {reason}")
    assert contents(bundle) == before


@pytest.mark.full
def test_other_weights_give_another_bundle(own: tuple[Path, Path]) -> None:
    source, bundle = own
    koala("engines", str(bundle), "--target", "cpu")
    engines, old = engine_folder(bundle, CPU), read_manifest(bundle)
    plans = times(engines)
    weights = source / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("position_embedding.weight"))
    tensors[name][0, 0] += 0.5
    save_file(tensors, weights, {"format": "pt"})

    assert "exporting: origin changed\n" in koala("export", str(source), str(bundle), *OPTIONS)
    new = read_manifest(bundle)
    changed = "onnx/text_encoder.onnx.data"
    assert new.origin.checkpoint != old.origin.checkpoint
    assert {path for path in old.files if old.files[path] != new.files[path]} == {changed}

    with pytest.raises(TargetError, match="plans built from other ONNX files"):
        open_engines(bundle, "cpu")
    assert f"ONNX changed ({changed})" in koala("engines", str(bundle), "--target", "cpu")
    rebuilt = {Path(name).name for name, when in times(engines).items() if Path(name).is_file() and plans[name] != when}
    wanted = {"engine.json", "text_encoder.onnx", "text_encoder.onnx.data"}
    assert rebuilt == wanted, "the others came along"
    open_engines(bundle, "cpu")
    shutil.rmtree(engines)
    assert "there are none yet" in koala("engines", str(bundle), "--target", "cpu")


def test_cpu_engines_are_built_again_for_a_reason(own: tuple[Path, Path]) -> None:
    bundle = own[1]
    command = ("engines", str(bundle), "--target", "cpu")
    assert "there are none yet" in koala(*command)
    engines = engine_folder(bundle, CPU)
    before, first = times(engines), contents(engines)
    assert "cpu: up to date" in koala(*command)
    assert times(engines) == before

    version = read_engine_record(bundle, CPU).key.compiler_version
    record = json.loads((engines / "engine.json").read_bytes())
    record["key"]["compiler_version"] = "0.0.1"
    write_sealed(engines / "engine.json", record)
    assert f"onnxruntime 0.0.1 -> onnxruntime {version}\n" in koala(*command)

    (engines / "engine.json").write_text("{")
    assert "engine.json: expected JSON" in koala(*command)

    plan = engines / "denoiser.onnx.data"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert ": plans are missing, cut short or damaged\n" in koala(*command)
    plan.unlink()
    assert ": plans are missing, cut short or damaged\n" in koala(*command)
    assert "cpu: up to date" in koala(*command)
    assert contents(engines).keys() == first.keys()
    assert plan.read_bytes() == first[plan.name]


@pytest.mark.full
def test_rtx_engines_are_built_again_for_another_level(own: tuple[Path, Path]) -> None:
    if problem := obstacles()[RTX]:
        pytest.skip(problem)
    command = ("engines", str(own[1]), "--target", "rtx")
    assert "there are none yet" in koala(*command)
    assert ": builder_optimization_level 3 -> 2\n" in koala(*command, "--optimization-level", "2")
    assert "rtx: up to date" in koala(*command, "--optimization-level", "2")
    assert ": compute_capabilities 8.0,8.6,8.9,12.0,12.1 -> 8.9\n" in koala(
        *command, "--optimization-level", "2", "--compute-capability", "8.9"
    )
