"""What is compiled into a bundle is asked of other pipelines, too, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import koala_bench.runner
from koala_bench.backends.base import Workload
from koala_bench.backends.diffusers import DiffusersPipeline
from koala_bench.runner import BenchOptions, run
from koala_bundle.errors import ArgumentError
from koala_bundle.manifest import Manifest, read_manifest


@pytest.fixture(scope="module")
def manifest(bundle: Callable[..., Path]) -> Manifest:
    return read_manifest(bundle("koala-700m-like"))


def test_chunks_of_text_are_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = replace(manifest, profile=replace(manifest.profile, prompt_chunks=3))
    monkeypatch.setattr(koala_bench.runner, "read_manifest", lambda _: longer)
    with pytest.raises(ArgumentError, match=r"bundle: expected one that reads one chunk of 77 tokens.* found 3 chunks"):
        run(Path(), "", BenchOptions())


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_skipped_layers_are_asked_of_diffusers(clip_skip: int, manifest: Manifest) -> None:
    asked: dict[str, Any] = {}

    class Pipe:
        def set_progress_bar_config(self, **_: Any) -> None: ...

        def __call__(self, prompts: list[str], **arguments: Any) -> Any:
            asked.update(arguments)
            return SimpleNamespace(images=[np.zeros((64, 96, 3), np.uint8)])

    profile = replace(manifest.profile, clip_skip=clip_skip)
    workload = Workload("", "", "a koala", 0, 4, 3.5, "")
    DiffusersPipeline(workload, replace(manifest, profile=profile), Pipe(), "cpu").draw()
    assert asked.get("clip_skip", 0) == clip_skip
    assert (asked["height"], asked["width"]) == (64, 96)
