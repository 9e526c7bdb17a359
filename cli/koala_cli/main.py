"""Entry point. Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted; never a traceback."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from koala_bundle.errors import InputError, KoalaError
from koala_cli.commands.batch import batch
from koala_cli.commands.bench import bench
from koala_cli.commands.build import build
from koala_cli.commands.compare import compare
from koala_cli.commands.doctor import doctor
from koala_cli.commands.engines import engines
from koala_cli.commands.export import export
from koala_cli.commands.inspect import inspect
from koala_cli.commands.run import run
from koala_cli.commands.serve import serve
from koala_cli.commands.sign import sign
from koala_cli.commands.verify import verify
from koala_cli.errors import Command, print_error, print_sentence, system_error, usage_error
from koala_cli.screen import set_encoding, stderr
from koala_runtime import __version__

app = typer.Typer(
    name="koala",
    help="Compile a KOALA (or any SDXL-shaped) checkpoint and draw pictures with it, without torch.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is the one that reads well at 80 columns
)
for command in (build, export, engines, run, batch, serve, verify, sign, bench, compare, inspect, doctor):
    app.command(cls=Command)(command)

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_RESUMABLE = {"build", "export", "engines", "batch"}


class _Settings:
    debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koala-trt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' own messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    _Settings.debug = debug
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        set_encoding(stream)
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Run ``koala`` with ``arguments`` and return its exit code."""
    try:
        ended = app(arguments or ["--help"], prog_name="koala", standalone_mode=False)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if _Settings.debug:
            stderr.print_exception()
        if isinstance(error, typer.TyperException):
            error = usage_error(error)
        if isinstance(error, OSError | MemoryError):
            error = system_error(error)
        if isinstance(error, KoalaError):
            print_error(error)
        else:
            print_sentence(f"unexpected {type(error).__name__}: {error}; `koala --debug` shows where.")
        return 2 if isinstance(error, InputError) else 1
    code = ended if isinstance(ended, int) else 0
    if code == _INTERRUPTED:
        resumes = not _RESUMABLE.isdisjoint(arguments)
        stderr.print(f"interrupted{'; run the same command again to resume' if resumes else ''}", style="yellow")
    return code


if __name__ == "__main__":
    main()
