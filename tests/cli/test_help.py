"""What ``--help`` shows, and what the shell completes."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from koala_bundle.scheduler_keys import TIMESTEP_SPACINGS
from koala_bundle.spec import PASS_NAMES, PRECISIONS
from koala_bundle.targets import TARGETS
from koala_cli.main import app, run_app

COMMANDS = [str(command.callback.__name__) for command in app.registered_commands if command.callback]
TARGET_NAMES = tuple(target.name for target in TARGETS)


def shown_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *command: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_app([*command, "--help"]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_reads_well_at_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown_help(capsys, monkeypatch, *filter(None, [command]))
    assert lines
    for above, line in itertools.pairwise(lines):
        assert len(line) <= 80
        assert "..." not in line or "[ARGS]..." in line or "<N,N...>" in line, "nothing is cut"
        continued = re.match(r" +", line) and above.startswith("  ") and not re.match(r" {2}[-\w]", line)
        assert not (continued and len(line.split()) == 1), f"a single word alone: {line!r}"


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("export", "--precision", PRECISIONS),
        ("build", "--precision", PRECISIONS),
        ("export", "--timestep-spacing", TIMESTEP_SPACINGS),
        ("export", "--without", PASS_NAMES),
        ("engines", "--target", TARGET_NAMES),
        ("run", "--target", TARGET_NAMES),
        ("verify", "--target", TARGET_NAMES),
    ],
)
def test_choices_are_listed_and_completed(
    command: str,
    option: str,
    values: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert f"{option} <{'|'.join(values)}>" in " ".join(shown_help(capsys, monkeypatch, command))
    assert completed(f"koala {command} {option} ") == [*values]
    assert completed(f"koala {command} {option} {values[-1][:3]}") == [values[-1]]


def completed(line: str) -> list[str]:
    """Return what bash would offer at the end of ``line``, asked as its completion script asks."""
    words = line.split()
    position = len(words) if line.endswith(" ") else len(words) - 1
    environment = {"_KOALA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(position)}
    done = subprocess.run(
        [sys.executable, "-m", "koala_cli.main"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_subcommands_are_completed() -> None:
    assert completed("koala ") == COMMANDS


@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is shown for the shell that asks")
def test_the_completion_script() -> None:
    asked = f"{shlex.quote(sys.executable)} -m koala_cli.main --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert "complete -o default -F _koala_completion koala" in done.stdout


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([]) == 0
    assert "Usage: koala [OPTIONS] COMMAND" in capsys.readouterr().out


def test_help_needs_no_heavy_library() -> None:
    program = (
        "import sys; from koala_cli.main import run_app; code = run_app(['build', '--help']); "
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'diffusers', 'transformers'} & {*sys.modules}; "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
