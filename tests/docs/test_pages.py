"""What the pages say is what the code does: commands, examples, tables."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from koala_bundle import errors
from koala_cli.main import app
from koala_engines.rtx import RTX_CAPABILITIES
from koala_export.presets import PRESETS
from tests.docs.test_site import ROOT

PAGES = {path.stem: path.read_text("utf-8") for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]}
COMMANDS = [
    line
    for page in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines()
]
INLINE = [code for page in PAGES.values() for code in re.findall(r"`(koala [a-z-]+[^`]*)`", page)]
EXAMPLES = [
    (name, example)
    for name, page in PAGES.items()
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    if "koala_runtime" in example and "# on a GPU" not in example and name != "README"
]


def command_and_options(name: str) -> tuple[Any, set[str]]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return command, {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("line", sorted({line for line in [*COMMANDS, *INLINE] if line.startswith("koala ")}))
def test_every_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)
    if words[1].startswith("-"):
        assert words[1] in {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
        return
    command, known = command_and_options(words[1])
    assert {word.partition("=")[0] for word in words[2:] if word.startswith("-")} <= known | {"--help"}
    if line in COMMANDS:
        context = command.make_context(words[1], words[2:], resilient_parsing=True)
        assert all(context.params.get(str(each.name)) is not None for each in command.params if each.required)


def test_the_errors_of_a_gpu_are_those_of_the_code() -> None:
    """What follows "expected" in each heading that errors.txt cannot have is a text of the source."""
    section = PAGES["troubleshooting"].partition("## Compilers and GPUs")[2].partition("\n## ")[0]
    headings = re.findall(r"^(.+)\n:   ", section, re.MULTILINE)
    folders = ("runtime", "engines", "export", "machine")
    source = "".join(path.read_text("utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert len(headings) >= 8
    for heading in headings:
        expected = heading.partition(": expected ")[2].partition(", found")[0]
        assert expected
        words = [piece.strip() for piece in re.split(r"\*[^*]+\*", expected)]
        assert [piece for piece in words if piece not in source] == [], heading


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    used = {word for page in PAGES.values() for word in re.findall(r"`make ([a-z-]+)", page)}
    used |= {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert used <= targets


@pytest.mark.parametrize(("page", "example"), EXAMPLES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(EXAMPLES)])
def test_every_python_example_runs(
    page: str,
    example: str,
    bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = "Image.open" in example
    (tmp_path / "bundle").symlink_to(bundle("koala-700m-like", **{"encoder": True} if pictures else {}))
    monkeypatch.chdir(tmp_path)
    for name in ("koala.png", "mask.png") if pictures else ():
        Image.new("RGB", (96, 64), "grey").save(name)
    exec(compile(example, page, "exec"), {"__name__": "__main__"})


def test_a_machine_that_only_draws_needs_no_onnx_files(bundle: Callable[..., Path], tmp_path: Path) -> None:
    from koala_runtime import Pipeline

    shipped = tmp_path / "shipped"
    shutil.copytree(bundle("koala-700m-like"), shipped, ignore=shutil.ignore_patterns("onnx"))
    assert not (shipped / "onnx").exists()
    with Pipeline(shipped) as pipe:
        assert len(pipe("a koala", num_inference_steps=1, seed=0).images) == 1
    assert "`onnx/` and the engines of\nother targets can be left out" in PAGES["fleet"]


def test_every_argument_of_diffusers_is_answered() -> None:
    from diffusers import StableDiffusionXLPipeline

    arguments = {*inspect.signature(StableDiffusionXLPipeline.__call__).parameters} - {"self", "kwargs"}
    assert {name for name in arguments if f"`{name}`" not in PAGES["from-diffusers"]} == set()


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets(name: str) -> None:
    preset = PRESETS[name]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGES["models"], re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == [str(preset.num_inference_steps), f"{preset.guidance_scale:g}", preset.timestep_spacing]
    assert cells[4] == preset.hub_id if preset.hub_id else "dry runs only" in cells[4]


def test_the_table_of_gpus() -> None:
    rows = re.findall(r"^\| (\d[\d., ]*) \| [^|]+ \| (yes|no) \|", PAGES["models"], re.MULTILINE)
    supported = {capability for cell, answer in rows if answer == "yes" for capability in cell.split(", ")}
    refused = {capability for cell, answer in rows if answer == "no" for capability in cell.split(", ")}
    assert supported == set(RTX_CAPABILITIES)
    assert refused.isdisjoint(RTX_CAPABILITIES)


def test_the_errors_a_product_catches_are_explained() -> None:
    from koala_runtime.pipeline import Pipeline

    raised = set(re.findall(r"\b[A-Z]\w+Error\b", f"{Pipeline.__doc__}{Pipeline.__call__.__doc__}"))
    assert raised
    assert all(issubclass(getattr(errors, name), errors.KoalaError) for name in raised)
    assert {name for name in raised if f"| `{name}` |" not in PAGES["embedding"]} == set()


def test_the_strangers_test() -> None:
    """Ten questions, and for each a file that exists."""
    section = PAGES["CONTRIBUTING"].partition("## Where things are")[2].partition("\n## ")[0]
    answers = re.findall(r"^\| (.+\?) \| `(.+)` \|$", section, re.MULTILINE)
    assert len(answers) == 10
    assert [path for _, path in answers if not (ROOT / path).is_file()] == []


def test_the_five_files_that_explain_the_rest_exist() -> None:
    section = PAGES["README"].partition("## Read on")[2]
    files = re.findall(r"^\| `(.+)` \|", section, re.MULTILINE)
    assert len(files) == 5
    assert [path for path in files if not (ROOT / path).is_file()] == []


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES["README"]) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_file_that_a_page_names_exists() -> None:
    named = {
        path
        for page in PAGES.values()
        for path in re.findall(r"`((?:tests|docs|bench|export|runtime)/[\w./-]+\.\w+)`", page)
    }
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
