"""`ecp fuzz`: mutated bytes against a service for as long as you like; one command for each service."""

from __future__ import annotations

import json
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

    from rich.console import Console

    from bench.fuzz.ingest import FuzzOptions, fuzz
    from bench.result import check_writable
    from mesh.process import run_until_signalled

    check_writable(json_file)
    progress = Console(stderr=True)
    options = FuzzOptions(frames, seconds, live, seed)
    report = run_until_signalled(
        fuzz(options, os.getpid(), lambda line: progress.print(line, highlight=False, soft_wrap=True))
    )
    for line in report.summary():
        print(line)
    if json_file:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.is_sound:
        raise typer.Exit(1)
