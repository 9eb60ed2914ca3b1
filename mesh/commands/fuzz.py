"""`ecp fuzz`: mutated bytes against a service for as long as you like; one command for each service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

fuzz = typer.Typer(
    name="fuzz", help="Send mutated bytes to a service, millions of them.", no_args_is_help=True
)


@fuzz.callback()
def _group() -> None:
    """Keeps `ecp fuzz NAME` a group even while it has one command."""


@fuzz.command()
def ingest(
    frames: Annotated[int, typer.Option(min=1, help="Stop after so many mutated frames.")] = 10_000_000,
    seconds: Annotated[float, typer.Option(min=1, help="Stop after this time.")] = 3_600,
    live: Annotated[bool, typer.Option(help="Give a tenth of the time to a real front door.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Repeats the mutations; 0 is random.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Mutate frames against decoder, sessions and sockets of the front door; exit with 1 at the first thing wrong."""
    import os

    from bench.fuzz.ingest import FuzzOptions, fuzz
    from mesh.outcome import check_writable, finish, run_telling

    check_writable(json_file)
    options = FuzzOptions(frames, seconds, live, seed)
    finish(run_telling(lambda tell: fuzz(options, os.getpid(), tell)), json_file)
