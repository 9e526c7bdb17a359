"""How an error is shown: its four parts, with command-line names in place of Python's.

The library names its parameters (``num_inference_steps``). Here alone they become what the user typed (``--steps``).
"""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand

from koala_bundle.errors import ArgumentError, KoalaError
from koala_cli.screen import stderr

# Parameters of the library that have another name in the command; all others share it.
_COMMAND_NAMES = {
    "num_inference_steps": "steps",
    "compute_capabilities": "compute_capability",
    "component": "layers",
    "loras": "lora",
    "mask_image": "mask",
}
_KINDS = {int: "a whole number", float: "a number"}


class Command(TyperCommand):
    """A subcommand whose argument errors name its own options and arguments."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except ArgumentError as error:
            name = _COMMAND_NAMES.get(error.what, error.what)
            what = next((shown_name(param) for param in self.params if param.name == name), error.what)
            raise ArgumentError(what, expected=error.expected, found=error.found, fix=error.fix) from error


def shown_name(param: Any) -> str:
    """Return what the user types for a parameter: ``--steps`` or ``SOURCE``."""
    return param.display_name_raw if isinstance(param, TyperArgument) else param.opts[0]


def usage_error(error: typer.TyperException) -> ArgumentError:
    """Return an error of the command line's own (typer's words) in our four parts."""
    context, param = getattr(error, "ctx", None), getattr(error, "param", None)
    command = context.command_path if context else "koala"
    fix = f"see `{command} --help`"
    if param is None:
        message = error.format_message().removeprefix("Got ").rstrip(".")
        found = message[:1].lower() + message[1:]
        return ArgumentError(f"`{command}`", expected="options and arguments as in its help", found=found, fix=fix)
    refused = error.__cause__
    if refused is None:
        return ArgumentError(shown_name(param), expected="a value", found="none", fix=fix)
    value = refused.errors()[0]["input"] if hasattr(refused, "errors") else error.message
    expected = _KINDS.get(param.type_descriptor.annotation, "a valid value")
    return ArgumentError(shown_name(param), expected=expected, found=repr(value), fix=fix)


def system_error(error: OSError | MemoryError) -> KoalaError:
    """Return what the operating system refused in our four parts."""
    if isinstance(error, MemoryError):
        fix = "close other programs, or use a machine with more memory"
        return KoalaError("memory", expected="enough for this command", found="too little", fix=fix)
    return KoalaError(
        str(error.filename or "the operating system"),
        expected="a file or device that can be used",
        found=error.strerror or str(error) or type(error).__name__,
        fix="check its name, the rights to it and its disk; `koala --debug` shows where it was needed",
    )


def print_error(error: KoalaError) -> None:
    """Print the four parts: aligned lines on a terminal, one sentence elsewhere."""
    if not stderr.is_terminal:
        print_sentence(str(error))
        return
    parts = {"error": error.what, "expected": error.expected, "found": error.found, "fix": error.fix}
    lines = Table.grid(padding=(0, 2))
    for name, text in parts.items():
        lines.add_row(Text(name, "bold red" if name == "error" else "bold"), Text(text))
    stderr.print(lines)


def print_sentence(sentence: str) -> None:
    """Print an error in one line, however long."""
    stderr.print(Text.assemble(("error", "bold red"), " ", sentence), soft_wrap=True)
