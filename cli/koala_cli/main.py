"""Entry point: exit code 0 done, 1 failed, 2 bad usage or input, 130 interrupted; one sentence, no traceback."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from koala_bundle.errors import InputError, KoalaError
from koala_cli.bench_command import bench, compare
from koala_cli.build_commands import engines, export
from koala_cli.look_commands import doctor, inspect
from koala_cli.run_command import run
from koala_cli.screen import plain, stderr
from koala_cli.verify_command import verify
from koala_runtime import __version__

app = typer.Typer(
    name="koala",
    help="Compile a KOALA (or any SDXL-shaped) checkpoint and draw pictures with it, without torch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (export, engines, run, verify, bench, compare, inspect, doctor):
    app.command()(command)


_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


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
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """Run ``koala`` with ``arguments`` and return its exit code."""
    try:
        app(arguments)
    except SystemExit as ended:  # typer's own way out: usage errors are 2, Ctrl-C is 130
        code = ended.code if isinstance(ended.code, int) else 1
        if code == _INTERRUPTED:
            stderr.print("interrupted; the same command goes on from here", style="yellow")
        return code
    except Exception as error:
        if _Settings.debug:
            stderr.print_exception()
        known = isinstance(error, KoalaError)
        sentence = str(error) if known else f"unexpected {type(error).__name__}: {error}; `koala --debug` shows where."
        stderr.print(f"[bold red]error[/] {plain(sentence)}", soft_wrap=True, highlight=False)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    main()
