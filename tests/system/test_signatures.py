"""Signed bundles: what a key covers is used, all else refused by its name; the program minisign agrees."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from koala_bundle.errors import ArgumentError, BundleError
from koala_cli.main import run_app
from koala_runtime import Pipeline
from koala_runtime.selection import open_engines
from tests.support.copies import copy_bundle

pytest.importorskip("minisign")


@pytest.fixture
def signed(tmp_path: Path, bundle: Callable[..., Path]) -> Path:
    own = copy_bundle(bundle("koala-tiny"), tmp_path / "bundle")
    assert run_app(["sign", "--generate", str(tmp_path / "my.key"), "--no-password"]) == 0
    assert run_app(["sign", str(own), "--key", str(tmp_path / "my.key")]) == 0
    return own


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.unlink()
    path.write_bytes(data.replace(old, new, 1))


def test_a_signed_bundle_draws(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = signed.parent / "my.pub"
    with Pipeline(signed, "cpu", key=key.read_text().splitlines()[1]) as pipe:
        assert pipe("a red circle", num_inference_steps=1).images
    capsys.readouterr()
    assert run_app(["verify", str(signed), "--key", str(key)]) == 0
    assert "manifest.json, engines/cpu/engine.json" in capsys.readouterr().out
    assert (signed.parent / "my.key").stat().st_mode & 0o077 == 0 or os.name == "nt"


def test_engines_that_were_added_later(signed: Path) -> None:
    from koala_bundle.targets import CUDA
    from koala_engines.build import build_engines

    build_engines(signed, CUDA)
    open_engines(signed, "cpu", key=signed.parent / "my.pub")
    assert run_app(["verify", str(signed), "--key", str(signed.parent / "my.pub")]) == 2
    change(signed / "engines/cpu/engine.json", b'  "files"', b' "files"')
    with pytest.raises(BundleError, match=r"engines/cpu/engine.json: expected the file that was signed, found another"):
        open_engines(signed, "cpu", key=signed.parent / "my.pub")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("manifest.json", b'  "gate"', b' "gate"', "manifest.json: expected the file that was signed"),
        ("SHA256SUMS", b"0", b"1", "found signature verification failed"),
        ("SHA256SUMS.minisig", b"trusted comment: t", b"trusted comment: T", "found signature verification failed"),
        ("SHA256SUMS.minisig", b"\n", b"", "found invalid"),
    ],
)
def test_tampering(signed: Path, file: str, old: bytes, new: bytes, words: str) -> None:
    change(signed / file, old, new)
    with pytest.raises(BundleError, match=words):
        open_engines(signed, "cpu", key=signed.parent / "my.pub")


def test_a_plan_that_was_changed(signed: Path) -> None:
    change(signed / "engines/cpu/text_encoder.onnx", b"text", b"tEXt")
    with pytest.raises(BundleError, match="expected SHA-256"):
        open_engines(signed, "cpu", key=signed.parent / "my.pub")


def test_no_signature_and_another_key(signed: Path, tmp_path: Path) -> None:
    assert run_app(["sign", "--generate", str(tmp_path / "other.key"), "--no-password"]) == 0
    with pytest.raises(BundleError, match="found incompatible key identifiers"):
        open_engines(signed, "cpu", key=tmp_path / "other.pub")
    (signed / "SHA256SUMS.minisig").unlink()
    with pytest.raises(BundleError, match="expected a signed bundle, found one without a signature"):
        open_engines(signed, "cpu", key=tmp_path / "my.pub")
    with pytest.raises(ArgumentError, match="expected a minisign public key, or the file of one"):
        open_engines(signed, "cpu", key=tmp_path / "nowhere.pub")


def test_the_program_minisign_agrees(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which("minisign")
    if program is None:
        pytest.skip("the program minisign is not installed")
    check = [program, "-V", "-m", "SHA256SUMS", "-p"]
    assert (
        subprocess.run([*check, signed.parent / "my.pub"], cwd=signed, capture_output=True, check=False).returncode == 0
    )
    theirs = signed.parent / "theirs.key"
    subprocess.run(
        [program, "-G", "-p", theirs.with_suffix(".pub"), "-s", theirs],
        input=b"pw\npw\n",
        capture_output=True,
        check=True,
    )
    assert run_app(["sign", str(signed), "--key", str(theirs)]) == 2
    assert "which has a password; run it in a terminal" in capsys.readouterr().err
    from minisign import SecretKey

    secret = SecretKey.from_file(theirs)
    secret.decrypt("pw")
    from koala_cli.commands.sign import sign_bundle

    sign_bundle(signed, secret)
    open_engines(signed, "cpu", key=theirs.with_suffix(".pub"))
