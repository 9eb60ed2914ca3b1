"""The command line `ecp`: registers the commands and turns expected failures into one line and an exit code.

To add a command, write mesh/commands/NAME.py with a function (or a typer.Typer for a group) and add one line
here.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from mesh import __version__
from mesh.commands import admin_synchrony, bench, check, demo, fuzz, gen, lock, status, test, torture, up
from mesh.errors import EXIT_CONFIGURATION, EXIT_USAGE, MeshError

RUN = "Run"
DEVELOP = "Develop"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    name="ecp",
    help="Execution Control Plane: copies trades from masters to their subscribers, once and in order.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app.command(rich_help_panel=RUN)(demo.demo)
app.command(rich_help_panel=RUN)(up.up)
app.command(rich_help_panel=RUN)(status.status)
app.add_typer(admin_synchrony.admin, rich_help_panel=RUN)
app.command(rich_help_panel=DEVELOP, context_settings=PASS_THROUGH)(test.test)
app.command(rich_help_panel=DEVELOP)(check.check)
app.add_typer(bench.bench, rich_help_panel=DEVELOP)
app.add_typer(torture.torture, rich_help_panel=DEVELOP)
app.add_typer(fuzz.fuzz, rich_help_panel=DEVELOP)
app.command(rich_help_panel=DEVELOP)(gen.gen)
app.command(rich_help_panel=DEVELOP)(lock.lock)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ecp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and exits: 0 done, 1 failure, 2 usage, 3 a machine or settings not fit for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # neither closed nor another's
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="ecp")
    except MeshError as error:
        _fail(str(error), error.exit_code)
    except UnicodeEncodeError as error:
        _fail(f"{error.object[: error.end]!a} is not text in {error.encoding}", EXIT_USAGE)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _discard_output()
        _fail(f"cannot write {error.filename or 'the output'}: {error.strerror}", EXIT_CONFIGURATION)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"ecp: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _discard_output() -> None:
    """What is still to be written would fail again when the interpreter ends, with words and a code of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())


if __name__ == "__main__":
    main()
