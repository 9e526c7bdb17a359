"""How errors are shown: parameters by their command-line names, four aligned lines on a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import koala_cli.errors
from koala_bundle.errors import ArgumentError, KoalaError
from koala_cli.errors import Command, print_error
from koala_cli.main import app, run_app

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("bundle", "machine", "export", "engines", "runtime", "verify", "bench")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run", "BUNDLE: expected a value, found none; see `koala run --help`."),
        ("run b cat --steps many", "--steps: expected a whole number, found 'many'; see `koala run --help`."),
        ("run b cat --guidance-scale x", "--guidance-scale: expected a number, found 'x'; see `koala run --help`."),
        ("export a b --precision int8", "--precision: expected fp16 or fp32, found 'int8'; pass one of these."),
        (
            "engines a --target simulated",
            "--target: expected tensorrt or rtx or cuda or cpu, found 'simulated'; pass one of these.",
        ),
        ("run b", "PROMPT: expected what to draw, found none; pass a prompt, or --like PICTURE."),
        (
            "rum",
            "`koala`: expected options and arguments as in its help, found no such command 'rum'. "
            "Did you mean 'run'?; see `koala --help`.",
        ),
        (
            "run b cat --stps 3",
            "`koala run`: expected options and arguments as in its help, found no such option: --stps "
            "(Possible options: --steps); see `koala run --help`.",
        ),
        (
            "verify a b c",
            "`koala verify`: expected options and arguments as in its help, found unexpected extra argument(s) (c); "
            "see `koala verify --help`.",
        ),
    ],
)
def test_wrong_usage(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(command.split()) == 2
    assert capsys.readouterr().err.strip() == f"error {said}"


@pytest.mark.parametrize(
    ("subcommand", "parameter", "shown"),
    [
        ("export", "num_inference_steps", "--steps"),
        ("export", "height", "--height"),
        ("export", "source", "SOURCE"),
        ("engines", "compute_capabilities", "--compute-capability"),
        ("verify", "seeds", "--seeds"),
        ("bench", "random_weights", "--random-weights"),
        ("run", "latents", "latents"),
    ],
)
def test_parameters_are_shown_as_they_are_typed(subcommand: str, parameter: str, shown: str) -> None:
    import typer

    group = typer.main.get_command(app)
    command = group.commands[subcommand]  # type: ignore[attr-defined]
    assert isinstance(command, Command)

    def fail(**_: object) -> None:
        raise ArgumentError(parameter, expected="one", found="another", fix="change it")

    command.callback = fail
    context = command.make_context("koala", [], resilient_parsing=True)
    with pytest.raises(ArgumentError) as caught:
        command.invoke(context)
    assert str(caught.value) == f"{shown}: expected one, found another; change it."


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("run", "bundle", "cat"), "interrupted"),
        (("build", "source", "bundle"), "interrupted; run the same command again to resume"),
    ],
)
def test_ctrl_c(
    command: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("koala_cli.commands.run._check_output", interrupt)
    monkeypatch.setattr("koala_cli.commands.export.require_packages", interrupt)
    assert run_app([*command]) == 130
    assert capsys.readouterr().err == f"{said}\n"


def test_four_aligned_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system=None, width=60, markup=False)
    monkeypatch.setattr(koala_cli.errors, "stderr", terminal)
    long = "install koala-trt[tensorrt] on the machine that has the GPU"
    print_error(KoalaError("--height", expected="a multiple of 8", found="1020", fix=long))
    assert [line.rstrip() for line in screen.getvalue().splitlines()] == [
        "error     --height",
        "expected  a multiple of 8",
        "found     1020",
        "fix       install koala-trt[tensorrt] on the machine that",
        "          has the GPU",
    ]


def test_the_library_names_no_option() -> None:
    """A Python caller reads parameter names; whole commands in backticks may have options."""
    found = []
    for library in LIBRARIES:
        for path in (ROOT / library).rglob("*.py"):
            text = re.sub(r"`koala [^`]*`", "", path.read_text(encoding="utf-8"))
            found += [
                f"{path.name}: {line}"
                for line in text.splitlines()
                if re.search(r"(fix|expected|found)=.*--[a-z]", line)
            ]
    assert found == []
