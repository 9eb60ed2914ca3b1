"""`ecp torture`: kills parts of the mesh under load, for long, and judges what is left; one command for each part."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.commands.choices import FOLDER, Edge, folder

if TYPE_CHECKING:
    from bench.torture.schedule_plan import Schedule

torture = typer.Typer(
    name="torture",
    help="Kill a service under load, many times, and judge what is left.",
    no_args_is_help=True,
)


class Durability(StrEnum):
    """What acknowledgements promise."""

    APPENDED = "APPENDED"
    FSYNCED = "FSYNCED"


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
    from bench.torture.ingest import TortureOptions, torture
    from mesh.outcome import check_writable, finish, run_telling

    check_writable(json_file)
    options = TortureOptions(kills, redis_kills, masters, rate, durability.value, seed)
    finish(run_telling(lambda tell: torture(options, tell)), json_file)


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
    from bench.torture.clients import ClientsOptions, torture
    from mesh.outcome import check_writable, finish, run_telling

    check_writable(json_file)
    options = ClientsOptions(seconds, rate, groups)
    if client:
        options = replace(options, clients=tuple(client))
    finish(run_telling(lambda tell: torture(options, tell)), json_file)


@torture.command()
def fanout(
    processes: Annotated[int, typer.Option(min=1, max=10, help="Fan-out processes, each on its port.")] = 3,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers of each, which share its port.")] = 1,
    subscribers: Annotated[int, typer.Option(min=1, max=5_000, help="Streams, over all processes.")] = 300,
    rate: Annotated[float, typer.Option(min=1, max=20_000, help="Signals a second.")] = 1_000,
    rounds: Annotated[
        int, typer.Option(min=0, max=10_000, help="Rolling restarts of all processes, one after the other.")
    ] = 3,
    kills: Annotated[
        int,
        typer.Option(min=0, max=10_000, help="SIGKILLs, of a process or a worker, at random among these."),
    ] = 0,
    edge: Annotated[Edge, typer.Option(help="What serves.")] = Edge.H2,
    drain_spread: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds over which a process ends its streams.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Repeats the order of the kills; 0 is random.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Restart the fan-out's processes under load; exit with 1 when a subscriber misses a signal or gets one twice."""
    from bench.torture.fanout import FanoutTortureOptions, torture
    from mesh.outcome import check_writable, finish, run_telling

    check_writable(json_file)
    options = FanoutTortureOptions(
        processes, workers, subscribers, rate, rounds, kills, edge.value, drain_spread, seed
    )
    finish(run_telling(lambda tell: torture(options, tell)), json_file)


@torture.command()
def schedules(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many, with seeds from --seed on.")] = 20,
    seed: Annotated[int, typer.Option(help="The first seed: the same one gives the same schedule.")] = 1,
    acts: Annotated[int, typer.Option(min=1, max=1_000, help="Acts of each schedule.")] = 14,
    followers: Annotated[int, typer.Option(min=1, max=50, help="Followers of each schedule.")] = 3,
    masters: Annotated[int, typer.Option(min=1, max=20, help="Masters that trade meanwhile.")] = 2,
    rate: Annotated[float, typer.Option(min=1, max=5_000, help="Signals a second, all together.")] = 120,
    schedule_file: Annotated[
        Path | None,
        typer.Option("--schedule", help="Play this schedule (JSON, as printed) instead.", dir_okay=False),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep logs and journals of what is not sound there.", parser=folder, metavar=FOLDER
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Play random schedules of drops, stalls, trims, restarts and restores of the log on real processes.

    Exits with 1 when a follower's journal is not what it should be: out of order, doubled, incomplete, or with a gap
    that names the wrong signals. What is printed then repeats the schedule.
    """
    from bench.torture.schedule_plan import Sizes, schedule
    from bench.torture.schedules import torture
    from mesh.outcome import check_folder, check_writable, finish, run_telling

    check_writable(json_file)
    check_folder(keep)
    sizes = Sizes(masters=masters, followers=followers, acts=acts)
    if schedule_file is not None:
        plans = iter([_read_schedule(schedule_file)])
    else:
        plans = (schedule(number, sizes) for number in range(seed, seed + count))
    options = {"count": count, "seed": seed, "rate": rate, "acts": acts, "followers": followers}
    report = run_telling(
        lambda tell: torture(plans, sizes, signals_per_second=rate, tell=tell, options=options, keep=keep)
    )
    finish(report, json_file)


def _read_schedule(path: Path) -> Schedule:
    from bench.torture.schedule_plan import Schedule

    try:
        return Schedule.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--schedule") from error
