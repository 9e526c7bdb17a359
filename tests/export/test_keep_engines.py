"""Plans whose graph is the same survive an export over their bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from koala_bundle.engine_record import engine_folder
from koala_bundle.targets import CPU, RTX
from koala_engines.build import build_engines
from koala_export.reuse import keep_engines
from tests.support.fleet import Compiled, change_component, make_bundle


def test_only_what_changed_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Compiled(monkeypatch)
    old, new = (make_bundle(tmp_path / name) for name in ("old", "new"))
    for target in (RTX, CPU):
        build_engines(old, target)
    (old / "engines" / ".rtx.partial").mkdir()
    (old / "engines" / ".rtx.partial" / "half.plan").write_text("of a build that was killed")
    change_component(new, "denoiser")
    compiled.log.clear()
    keep_engines(old, new)
    for target in (RTX, CPU):
        assert build_engines(new, target)
        assert not build_engines(new, target)
        plan = Path("vae_decoder.plan")
        kept, before = engine_folder(new, target) / plan, engine_folder(old, target) / plan
        assert kept.stat().st_ino == before.stat().st_ino, "a link"
    assert compiled.log == ["rtx denoiser", "cpu denoiser"]
    assert not [*(new / "engines").glob(".*partial")]


def test_without_engines_nothing_is_made(tmp_path: Path) -> None:
    old, new = (make_bundle(tmp_path / name) for name in ("old", "new"))
    keep_engines(old, new)
    keep_engines(tmp_path / "no bundle yet", new)
    assert not (new / "engines").exists()
