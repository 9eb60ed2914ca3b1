"""`ecp bench`: measures one service at a time beside its yardstick; a benchmark is one function here.

To add one, write bench/NAME.py with what it does and one command here that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from mesh.commands.choices import Edge

if TYPE_CHECKING:
    from bench.result import Result
    from mesh.outcome import Tell

bench = typer.Typer(
    name="bench",
    help="Measure a service beside its yardstick, on two cores of this machine.",
    no_args_is_help=True,
)

JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write machine and results to this file.", dir_okay=False)
]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Draw a chart, SVG.", dir_okay=False)]
Runs = Annotated[int, typer.Option(min=1, max=100, help="Runs of each measurement; the median counts.")]
Seconds = Annotated[float, typer.Option(min=0.5, max=600, help="Length of one run, after its warm-up.")]

Attempts = Annotated[
    int, typer.Option(min=1, max=20, help="Times to try a run that others on the machine disturb.")
]


@bench.command()
def ingest(
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    seconds: Seconds = 4,
    runs: Runs = 5,
    connections: Annotated[int, typer.Option(min=1, max=250, help="Masters, each on its connection.")] = 64,
    attempts: Attempts = 3,
) -> None:
    """Signed signals a second and latency of acknowledgements through one front door on one core."""
    from bench.ingest import IngestOptions, measure

    options = IngestOptions(seconds, runs, connections, attempts, with_curve=plot_file is not None)
    _measured(lambda tell: measure(options, tell), json_file, plot_file)


@bench.command()
def fanout(
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    seconds: Seconds = 3,
    runs: Runs = 5,
    subscribers: Annotated[
        int, typer.Option(min=1, max=15_000, help="Streams, each on its connection.")
    ] = 500,
    idle: Annotated[
        int, typer.Option(min=0, max=15_000, help="Idle streams for their memory; 0 leaves it out.")
    ] = 10_000,
    repeat_seconds: Annotated[
        float,
        typer.Option(
            min=0, max=86_400, help="Time in all for repeating runs that others on the machine disturb."
        ),
    ] = 80,
    edge: Annotated[Edge, typer.Option(help="What serves.")] = Edge.H2,
) -> None:
    """Deliveries a second of one fan-out on one core, latency at half of that, TLS, stalled readers, idle streams."""
    from bench.fanout import FanoutOptions, measure

    options = FanoutOptions(
        subscribers=subscribers,
        idle_subscribers=idle,
        seconds=seconds,
        runs=runs,
        repeat_seconds_max=repeat_seconds,
        edge=edge.value,
        with_curve=plot_file is not None,
    )
    _measured(lambda tell: measure(options, tell), json_file, plot_file)


@bench.command("end-to-end")
def end_to_end(
    json_file: JsonFile = None,
    plot_file: PlotFile = None,
    seconds: Seconds = 4,
    runs: Runs = 5,
    subscribers: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=1_000, help="How many subscribe; again for another number. [default: 1, 100]"
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=0, max=100, help="Runs, in all, to make anew when others disturb them.")
    ] = 8,
    yardstick: Annotated[bool, typer.Option(help="Measure NATS JetStream beside it.")] = True,
) -> None:
    """Time from a master's send to its subscribers' receipt at 1,000 signals a second."""
    from bench.end_to_end import EndToEndOptions, measure

    options = EndToEndOptions(
        subscribers=tuple(dict.fromkeys(subscribers or (1, 100))),
        seconds=seconds,
        runs=runs,
        repeats=repeats,
        with_yardstick=yardstick,
    )
    _measured(lambda tell: measure(options, tell), json_file, plot_file)


class _Report(Protocol):
    """What every benchmark ends with."""

    machine: dict[str, Any]
    results: list[Result]

    def chart(self) -> str:
        """As SVG."""
        ...


def _measured(
    measure: Callable[[Tell], Coroutine[Any, Any, _Report]], json_file: Path | None, plot_file: Path | None
) -> None:
    """Measures, leaves the files that were asked for, and prints the table."""
    from rich.console import Console

    from bench.result import as_json, print_table
    from mesh.outcome import check_writable, run_telling, write_json, write_text

    check_writable(json_file, plot_file)
    report = run_telling(measure)
    try:
        write_json(json_file, as_json(report.machine, report.results))
        if plot_file:
            write_text(plot_file, report.chart())
    finally:
        print_table(Console(), report.machine, report.results)
