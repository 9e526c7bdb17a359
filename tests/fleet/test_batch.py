"""Files of prompts on this machine: rows, failures, kills in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from koala_bundle.errors import ArgumentError
from koala_cli.main import run_app
from koala_fleet.prompts import read_prompts
from koala_runtime import Pipeline, read_recipe
from tests.support import bundles


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundles.bundle("koala-tiny", batch=2, encoder=True)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def results(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text("utf-8").splitlines()]
    return sorted(lines, key=lambda line: int(line["index"]))


def test_rows_are_drawn_as_calls_would_draw_them(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Image.effect_noise((128, 128), 60).convert("RGB")
    start.save(tmp_path / "start.png")
    rows: list[Any] = [
        {"prompt": "a red circle", "num_inference_steps": 4},
        {"prompt": "a blue square", "num_inference_steps": 4, "seed": 2**40, "id": "blue"},
        {"prompt": "a green star", "scheduler": "nonsense"},
        "",
        {"prompt": "a ring", "num_inference_steps": 4, "image": "start.png", "strength": 0.5, "negative_prompt": "x"},
        {"prompt": "a red circle", "num_inference_steps": 4, "image": "prompts.jsonl"},
        {"prompt": "a cross", "num_inference_steps": 4},
    ]
    prompts = write(tmp_path / "prompts.jsonl", *rows)
    assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out"), "--seed", "10"]) == 1
    assert "6 rows done now, 0 before, 2 failed" in capsys.readouterr().err
    found = results(tmp_path / "out")
    assert [line.get("file") for line in found] == ["000000.png", "blue.png", None, "000004.png", None, "000006.png"]
    assert [line["seed"] for line in found] == [10, 2**40, 12, 14, 15, 16]
    assert found[2]["error"]["what"] == "scheduler" and "picture" in found[4]["error"]["expected"]
    with Pipeline(bundle) as pipe:
        for index in (0, 1, 6):
            row = rows[index]
            image = pipe(row["prompt"], num_inference_steps=4, seed=row.get("seed", 10 + index)).images[0]
            path = tmp_path / "out" / found[index - (index > 3)]["file"]
            assert (np.asarray(image) == np.asarray(Image.open(path))).all()
            assert (read_recipe(path).index, read_recipe(path).count) == (0, 1)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out"), "--seed", "10"]) == 1
    assert "2 rows done now, 4 before, 2 failed" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix == ".png"} == {
        name: data for name, data in kept.items() if name.endswith(".png")
    }
    assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out")]) == 2
    assert "results of other prompts, pictures or seeds" in capsys.readouterr().err
    (tmp_path / "out/blue.png").unlink()
    with FileLock(tmp_path / "out/.lock"):
        assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out"), "--seed", "10"]) == 2
    assert "another `koala batch` at work in it" in capsys.readouterr().err
    assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out"), "--seed", "10"]) == 1
    assert "3 rows done now, 3 before, 2 failed" in capsys.readouterr().err
    assert (tmp_path / "out/blue.png").read_bytes() == kept["blue.png"]
    start.rotate(90).save(tmp_path / "start.png")
    assert run_app(["batch", str(bundle), str(prompts), str(tmp_path / "out"), "--seed", "10"]) == 2
    assert "results of other prompts, pictures or seeds" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_a_run_that_is_killed_resumes_to_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"a red circle {number}", "num_inference_steps": 2 + number % 2} for number in range(12)]
    prompts = write(tmp_path / "prompts.jsonl", *rows)
    command = [sys.executable, "-m", "koala_cli.main", "batch", str(bundle), str(prompts)]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.PIPE)
    lines, until = tmp_path / "killed" / "results.jsonl", time.monotonic() + 60
    while not (lines.exists() and len(lines.read_bytes().splitlines()) >= 3):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with lines.open("a") as stream:
        stream.write('{"index": 11, "id": "0000')  # what a kill in the middle of a write leaves
    assert run_app([*command[3:], str(tmp_path / "killed")]) == 0
    assert run_app([*command[3:], str(tmp_path / "whole")]) == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole") and len(results(tmp_path / "whole")) == 12
    for line in results(tmp_path / "whole"):
        assert (tmp_path / "killed" / line["file"]).read_bytes() == (tmp_path / "whole" / line["file"]).read_bytes()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{", "line 2: expected a JSON object, found text that ends in error"),
        ("[" * 100_000, "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object such as"),
        ({"promt": "x"}, "line 2: promt: expected one of prompt, negative_prompt"),
        ({"seed": 1}, "line 2: prompt: expected what to draw, found none"),
        ({"prompt": "x", "seed": "1"}, "line 2: seed: expected a whole number, found '1'"),
        ({"prompt": "x", "weighted": 1}, "line 2: weighted: expected true or false"),
        ({"prompt": "x", "seed": True}, "line 2: seed: expected a whole number"),
        ({"prompt": "x", "id": "../x"}, "line 2: id: expected letters, digits"),
        ({"prompt": "x", "id": "NUL"}, "line 2: id: expected letters, digits"),
        ({"prompt": "x", "id": "000000"}, "found '000000', as in line 1"),
        ({"prompt": "x", "image": "none.png"}, "line 2: image: expected a picture, found"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_drawn(row: Any, sentence: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", {"prompt": "a red circle"}, row)
    with pytest.raises(ArgumentError) as raised:
        list(read_prompts(prompts))
    assert sentence in str(raised.value)


def test_text_files_have_a_prompt_per_line(tmp_path: Path) -> None:
    rows = [*read_prompts(write(tmp_path / "prompts.txt", "a koala", "", "  another  "), seed=5)]
    assert [(row.index, row.name, row.request.prompt, row.request.seed) for row in rows] == [
        (0, "000000", "a koala", 5),
        (2, "000002", "another", 7),
    ]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ArgumentError, match="UTF-8"):
        list(read_prompts(tmp_path / "latin.txt"))
