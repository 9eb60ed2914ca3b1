"""`ecp demo`: the main job, whole, on embedded servers: trade, follow, cut, cheat, pause, and compare the books."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.commands.choices import FOLDER, folder

if TYPE_CHECKING:
    from mesh.demo.report import Report
    from mesh.demo.scenario import DemoOptions

SECONDS_MIN = 5
SIGNALS_PER_SECOND_MAX = 5_000


def demo(
    seconds: Annotated[
        float, typer.Option(min=SECONDS_MIN, max=86_400, help="How long the masters trade.")
    ] = 60,
    rate: Annotated[
        float, typer.Option(min=1, max=SIGNALS_PER_SECOND_MAX, help="Signals a second, all masters together.")
    ] = 60,
    subscribers: Annotated[int, typer.Option(min=10, max=500, help="How many follow.")] = 12,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.", dir_okay=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Keep stores, logs and books in this new folder.", parser=folder, metavar=FOLDER
        ),
    ] = None,
    view: Annotated[bool, typer.Option(help="Show the live view (where there is a terminal).")] = True,
) -> None:
    """Run the whole mesh on real EUR/USD prices, then compare all books; exit with 1 when anything differs."""
    from mesh.demo.scenario import DemoOptions
    from mesh.outcome import check_writable, write_json

    check_writable(json_file)
    report = _play(DemoOptions(seconds, rate, subscribers, data.resolve() if data else None), view=view)
    try:
        write_json(json_file, report.as_json())
    finally:
        report.print()
    if not report.is_sound:
        raise typer.Exit(1)


def _play(options: DemoOptions, *, view: bool) -> Report:
    from rich.console import Console
    from rich.live import Live

    from mesh.demo.board import Board
    from mesh.demo.scenario import play
    from mesh.demo.view import PlainReporter, draw
    from mesh.process import run_until_signalled

    console, board = Console(), Board(options.seconds)
    if view and console.is_terminal:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            report = run_until_signalled(
                play(options, board, show=lambda board: live.update(draw(board), refresh=True))
            )
    else:
        report = run_until_signalled(play(options, board, show=PlainReporter(Console(stderr=True)).show))
    return report
