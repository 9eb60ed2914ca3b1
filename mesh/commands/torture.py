"""`ecp torture`: kills parts of the mesh under load, for long, and judges what is left; one command for each part."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

torture = typer.Typer(
    name="torture",
    help="Kill a service under load, many times, and judge what is left.",
    no_args_is_help=True,
)


class Durability(StrEnum):
    """What acknowledgements promise."""

    APPENDED = "APPENDED"
    FSYNCED = "FSYNCED"


@torture.callback()
def _group() -> None:
    """Keeps `ecp torture NAME` a group even while it has one command."""


@torture.command()
def ingest(
    kills: Annotated[int, typer.Option(min=0, max=100_000, help="SIGKILLs of the front door.")] = 200,
    redis_kills: Annotated[
        int, typer.Option(min=0, max=100_000, help="SIGKILLs of Redis; every other one also cuts its file.")
    ] = 30,
    masters: Annotated[int, typer.Option(min=1, max=200, help="Masters that trade meanwhile.")] = 20,
    rate: Annotated[float, typer.Option(min=1, max=20_000, help="Signals a second, all together.")] = 2_000,
    durability: Annotated[Durability, typer.Option(help="What acknowledgements promise.")] = (
        Durability.APPENDED
    ),
    seed: Annotated[int, typer.Option(help="Repeats the order of the kills; 0 is random.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Kill front door and Redis under load; exit with 1 when an acknowledged signal is lost unseen or out of order."""
    from rich.console import Console

    from bench.result import check_writable
    from bench.torture.ingest import TortureOptions, torture
    from mesh.process import run_until_signalled

    check_writable(json_file)
    progress = Console(stderr=True)
    options = TortureOptions(kills, redis_kills, masters, rate, durability.value, seed)
    report = run_until_signalled(
        torture(options, lambda line: progress.print(line, highlight=False, soft_wrap=True))
    )
    for line in report.summary():
        print(line)
    if json_file:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.is_sound:
        raise typer.Exit(1)


@torture.command()
def clients(
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="Length of a turn.")] = 300,
    rate: Annotated[float, typer.Option(min=1, max=20_000, help="Signals a second.")] = 1_000,
    groups: Annotated[
        int,
        typer.Option(
            min=1, max=6, help="Turns, each with a part of the clients, when all at once are too many."
        ),
    ] = 1,
    client: Annotated[
        list[str] | None, typer.Option(help="Only this client; may be repeated.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Let stock gRPC clients read a busy stream, also over TLS; exit with 1 when one does not read all of it."""
    from rich.console import Console

    from bench.result import check_writable
    from bench.torture.clients import ClientsOptions, torture
    from mesh.process import run_until_signalled

    check_writable(json_file)
    progress = Console(stderr=True)
    options = ClientsOptions(seconds, rate, groups)
    if client:
        options = replace(options, clients=tuple(client))
    report = run_until_signalled(
        torture(options, lambda line: progress.print(line, highlight=False, soft_wrap=True))
    )
    for line in report.summary():
        print(line)
    if json_file:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
    if not report.is_sound:
        raise typer.Exit(1)
