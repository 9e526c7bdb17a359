"""Every JSON file of a checkpoint and of a bundle, changed at random: read as diffusers does, or refused by its name.

A seed is a change: a fault that is found is repeated by its seed alone. The long run is `make test-full`'s.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from koala_bundle.errors import KoalaError
from koala_runtime.selection import open_engines
from tests.support.copies import copy_bundle
from tests.system.cases.support import CONFIGS, TOKENIZER, Case, assert_equal, copy_checkpoint, diffusers_of, read

FILES = (*CONFIGS, TOKENIZER, "tokenizer_2/special_tokens_map.json", "tokenizer/vocab.json", "unet/index.json")
INDEX_FILE = "unet/diffusion_pytorch_model.safetensors.index.json"
OTHERS: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2, 7, 0.5, 1e9, 10**30, "", "text", "1", [], [1], {}, {"a": 1})
RECORDS = ("manifest.json", "engines/cpu/engine.json", "tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json")


def paths(data: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value but its top."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


def changed(data: Any, draw: random.Random) -> tuple[Any, str]:
    """Return ``data`` with one change, and the change in words."""
    data = copy.deepcopy(data)
    path = draw.choice([*paths(data)])
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    if draw.random() < 0.2:
        del holder[path[-1]]
        return data, f"without {path}"
    new = draw.choice(OTHERS)
    if isinstance(old, int | float) and not isinstance(old, bool) and draw.random() < 0.5:
        new = draw.choice([old + 1, old - 1, old * 2, -old, old / 2, float(old), str(old)])
    holder[path[-1]] = new
    return data, f"{path}: {old!r:.40} -> {new!r}"


class Fuzzed:
    """A checkpoint of which one file at a time is changed."""

    def __init__(self, folder: Path) -> None:
        from tests.system.cases.test_sources import STEM, shard

        self.folder = folder
        shard(Case(folder), "unet", STEM)
        (folder / f"unet/{STEM}.safetensors").unlink()
        self.files = [INDEX_FILE if name == "unet/index.json" else name for name in FILES]

    def change(self, seed: int) -> str:
        """Make the change of ``seed``; return what it led to: ``equal`` or ``refused``. Anything else is raised."""
        draw = random.Random(seed)
        file = self.files[seed % len(self.files)]
        path = self.folder / file
        before = path.read_text(encoding="utf-8")
        data, words = changed(json.loads(before), draw)
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        try:
            return self._outcome(Path(file))
        except Exception as error:
            error.add_note(f"seed {seed}: {file}: {words}")
            raise
        finally:
            path.write_text(before, encoding="utf-8")

    def _outcome(self, file: Path) -> str:
        try:
            found = read(self.folder)
        except KoalaError as error:
            assert "unexpected" not in str(error)
            assert file.name in str(error) or file.parent.name in str(error), str(error)
            return "refused"
        assert_equal(found, diffusers_of(self.folder))
        return "equal"


@pytest.fixture
def fuzzed(smallest: Path, tmp_path: Path) -> Fuzzed:
    return Fuzzed(copy_checkpoint(smallest, tmp_path / "checkpoint"))


def test_checkpoints(fuzzed: Fuzzed) -> None:
    ended = [fuzzed.change(seed) for seed in range(40)]
    assert {*ended} == {"equal", "refused"}


@pytest.mark.full
def test_checkpoints_for_three_minutes(fuzzed: Fuzzed) -> None:
    until, seed, ended, faults = time.monotonic() + 180, 1000, {"equal": 0, "refused": 0}, list[str]()
    while time.monotonic() < until and seed < 5000:
        try:
            ended[fuzzed.change(seed)] += 1
        except Exception as error:
            faults.append(f"{error.__notes__[0]}: {type(error).__name__} {error!s:.300}")
        seed += 1
    print(f"{seed - 1000} changes: {ended}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("count", [240, pytest.param(4000, marks=pytest.mark.full)])
def test_bundles(bundle: Callable[..., Path], tmp_path: Path, count: int) -> None:
    """A record that says something else than what was written is refused: no number is taken on trust."""
    own = copy_bundle(bundle("koala-700m-like"), tmp_path / "bundle")
    for seed in range(count):
        draw, file = random.Random(seed), RECORDS[seed % (2 if seed % 20 else 4)]
        path = own / file
        before = path.read_bytes()
        data, words = changed(json.loads(before), draw)
        path.unlink()
        path.write_text(json.dumps(data))
        try:
            open_engines(own, "cpu")
        except KoalaError as error:
            assert Path(file).name in str(error) or "file name" in str(error), f"seed {seed}: {words}: {error}"
        else:
            assert data == json.loads(before), f"seed {seed}: {file}: {words} was not noticed"
        finally:
            path.write_bytes(before)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_exports_of_changed_checkpoints(fuzzed: Fuzzed, tmp_path: Path) -> None:
    """Of changes that are accepted, some are exported, drawn and compared with diffusers' pictures."""
    import numpy as np
    import torch

    from koala_bundle.targets import CPU
    from koala_engines.build import build_engines
    from koala_export.exporter import export_bundle
    from koala_export.options import ExportOptions
    from koala_runtime import Pipeline

    options = ExportOptions(height=64, width=64, precision="fp32", cfg=True, num_inference_steps=2, guidance_scale=3.0)
    drawn, seed = 0, 20_000
    while drawn < 6:
        seed += 1
        file = fuzzed.files[seed % len(fuzzed.files)]
        path = fuzzed.folder / file
        before = path.read_text(encoding="utf-8")
        data, words = changed(json.loads(before), random.Random(seed))
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        try:
            export_bundle(str(fuzzed.folder), tmp_path / "bundle", options)
            build_engines(tmp_path / "bundle", CPU)
            pipe = diffusers_of(fuzzed.folder)
            pipe.set_progress_bar_config(disable=True)
            size = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
            wanted = pipe("a koala", generator=torch.Generator().manual_seed(0), **size).images
            with Pipeline(tmp_path / "bundle", "cpu") as ours:
                got = ours("a koala", seed=0, guidance_scale=3.0, output_type="np").images
            assert np.abs(wanted - got).max() <= 2 / 255, f"seed {seed}: {file}: {words}"
            drawn += 1
        except KoalaError as error:
            assert Path(file).name in str(error) or Path(file).parent.name in str(error), (
                f"seed {seed}: {words}: {error}"
            )
        finally:
            path.write_text(before, encoding="utf-8")
