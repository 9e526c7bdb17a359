"""What is the same in an earlier bundle is taken over, as links; what changed is exported and built again, alone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from koala_bundle.engine_record import engine_folder
from koala_bundle.errors import BundleError
from koala_bundle.files import check_files, write_sealed
from koala_bundle.manifest import MANIFEST, read_manifest
from koala_bundle.swap import Staging
from koala_bundle.targets import CPU, RTX
from koala_engines.build import build_engines
from koala_export.exporter import export_bundle
from koala_export.options import ExportOptions
from koala_export.reuse import keep_engines
from tests.support.bundles import DEFAULTS, lora_files
from tests.support.fleet import Compiled, change_component, make_bundle

SHAPE = "koala-700m-like"
TRACED = ("text_encoder", "text_encoder_2", "denoiser", "vae_decoder")


@pytest.fixture
def base(bundle: Callable[..., Path], tmp_path: Path) -> Path:
    """A bundle that a test may change, with cpu engines, on the disk of its folder."""
    return shutil.copytree(bundle(SHAPE), tmp_path / "base")


@pytest.fixture
def source(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint(SHAPE))


class StopError(BundleError):
    """Raised by a test that has seen enough."""


def exported(source: str, bundle: Path, base: Path | None = None, **options: Any) -> dict[str, str]:
    """Export; return what was done with each component: kept or exported."""
    lines: list[str] = []
    assert export_bundle(source, bundle, ExportOptions(**DEFAULTS | {"gate": False} | options), lines.append, base)
    done = {"loading": "exported", "unchanged, kept": "kept"}
    said = (line.partition(": ") for line in lines)
    return {name: done[what] for name, _, what in said if what in done}


def built(bundle: Path) -> set[str]:
    """Build cpu engines; return the components that were compiled."""
    lines: list[str] = []
    build_engines(bundle, CPU, report=lines.append)
    return {line.split(": ")[1] for line in lines if ": built in " in line}


def own_files(bundle: Path, base: Path) -> set[str]:
    """Return the files of ``bundle`` that are not links to those of ``base``."""
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    return {name for name, path in files.items() if not ((base / name).exists() and path.samefile(base / name))}


def contents(bundle: Path) -> dict[str, bytes]:
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_a_lora_costs_what_it_touches(source: str, base: Path, tmp_path: Path) -> None:
    """A second bundle with a LoRA for one text encoder shares all the rest, plans included."""
    before, new = contents(base), tmp_path / "new"
    lora = f"{lora_files(SHAPE)['text']}:0.5"
    assert exported(source, new, base, loras=(lora,)) == {
        **dict.fromkeys(TRACED, "kept"),
        "text_encoder": "exported",
    }
    assert own_files(new, base) == {MANIFEST, "onnx/text_encoder.onnx.data"}
    manifest, old = read_manifest(new), read_manifest(base)
    check_files(new, manifest.files, "")
    assert (manifest.traced, manifest.changes) == (old.traced, old.changes)
    keys = {entry.name: entry.key for entry in manifest.components}
    assert keys["prologue"] == keys["denoiser"]
    assert {name for name in keys if keys[name] != old.component(name).key} == {"text_encoder"}
    assert built(new) == {"text_encoder"}
    plans = {f"engines/cpu/{name}" for name in ("engine.json", "text_encoder.onnx", "text_encoder.onnx.data")}
    assert own_files(new, base) <= {MANIFEST, "onnx/text_encoder.onnx.data", *plans}
    assert contents(base) == before

    # Back to the base's weights, in place: nothing is exported again, and the base's own plan is not needed.
    assert exported(source, new, base) == dict.fromkeys(TRACED, "kept")
    assert contents(new)["onnx/text_encoder.onnx.data"] == before["onnx/text_encoder.onnx.data"]
    assert built(new) == {"text_encoder"}


def test_other_defaults_export_nothing_again(source: str, base: Path) -> None:
    engines = own_files(base / "engines", base)
    assert exported(source, base, num_inference_steps=7) == dict.fromkeys(TRACED, "kept")
    assert read_manifest(base).sampling.num_inference_steps == 7
    assert built(base) == set()
    assert own_files(base / "engines", base) == engines


def test_a_damaged_base_is_not_taken(source: str, base: Path, tmp_path: Path) -> None:
    path = base / "onnx" / "text_encoder.onnx.data"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 0xFF]) + whole[1:])
    (base / "onnx" / "vae_decoder.onnx").unlink()
    before = contents(base)
    new = tmp_path / "new"
    done = exported(source, new, base)
    assert done == {**dict.fromkeys(TRACED, "exported"), "text_encoder_2": "kept", "denoiser": "kept"}
    check_files(new, read_manifest(new).files, "")
    assert (new / "onnx" / "text_encoder.onnx.data").read_bytes() == whole
    assert contents(base) == before, "nothing is written through a link"


def test_a_killed_export_writes_through_no_link(
    source: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The links that it left are removed, not written to, when the base is gone from the command."""
    before, new = contents(base), tmp_path / "new"
    finish = Staging.finish

    def killed(self: Staging, piece: str, paths: Any, **facts: str) -> Any:
        if piece == "text_encoder":
            raise KeyboardInterrupt
        return finish(self, piece, paths, **facts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Staging, "finish", killed)
        exported(source, new, base)
    left = new.with_name(".new.partial") / "onnx" / "text_encoder.onnx.data"
    assert left.samefile(base / "onnx" / "text_encoder.onnx.data")

    def stop(line: str) -> None:
        if line == "text_encoder_2: loading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(source, new, ExportOptions(**DEFAULTS | {"gate": False}), stop)
    assert not left.samefile(base / "onnx" / "text_encoder.onnx.data")
    assert contents(base) == before


def test_without_links_files_are_copied(
    source: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    new = tmp_path / "new"
    assert exported(source, new, base, num_inference_steps=7) == dict.fromkeys(TRACED, "kept")
    check_files(new, read_manifest(new).files, "")
    assert own_files(new, base) == contents(new).keys()
    assert built(new) == set()


def test_what_was_not_compared_is_compared(source: str, base: Path, tmp_path: Path) -> None:
    """With the gate on, components of a bundle without it are exported again."""
    manifest = read_manifest(base)
    data = {**vars(manifest), "gate": "skipped"}
    write_sealed(base / MANIFEST, type(manifest)(**data))

    def stop(line: str) -> None:
        if "text_encoder:" in line:
            raise StopError(line, expected="", found="", fix="")

    for gate, said in ((True, "text_encoder: loading"), (False, "text_encoder: unchanged, kept")):
        options = ExportOptions(**DEFAULTS | {"gate": gate})
        with pytest.raises(StopError, match=said):
            export_bundle(source, tmp_path / "new", options, stop, base)
        assert not (tmp_path / "new").exists()


def test_a_change_of_lora_is_the_reason(source: str, base: Path) -> None:
    def stop(line: str) -> None:
        raise StopError(line, expected="", found="", fix="")

    for scale in ("0.5", "0.6"):
        lora = f"{lora_files(SHAPE)['text']}:{scale}"
        with pytest.raises(StopError, match="exporting: LoRA changed"):
            export_bundle(source, base, ExportOptions(**DEFAULTS | {"gate": False, "loras": (lora,)}), stop)


def test_the_base_must_be_a_bundle(source: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected the manifest of a bundle, found no folder"):
        export_bundle(source, tmp_path / "new", ExportOptions(**DEFAULTS), base=tmp_path / "nothing")


def test_a_killed_build_writes_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept plan is a link; where a later build makes it anew, the other bundle's plan stays as it is."""
    compiled = Compiled(monkeypatch)
    old, new = (make_bundle(tmp_path / name) for name in ("old", "new"))
    build_engines(old, RTX)
    keep_engines(old, new)
    before = contents(old)
    change_component(new, "text_encoder_2")

    def killed(line: str) -> None:
        if "text_encoder_2: built" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(new, RTX, report=killed)
    change_component(new, "text_encoder")
    compiled.log.clear()
    assert build_engines(new, RTX)
    assert compiled.log == ["rtx text_encoder"]
    assert contents(old) == before
    assert not (engine_folder(new, RTX) / "text_encoder.plan").samefile(engine_folder(old, RTX) / "text_encoder.plan")
