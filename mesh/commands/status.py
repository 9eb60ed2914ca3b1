"""`ecp status`: health, heads, lag and states of a running mesh."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.commands.choices import Data

if TYPE_CHECKING:
    from rich.table import Table

    from mesh.status import Status


def status(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Show health, heads, lag and states of the running mesh; exit with 1 when something is not well."""
    from mesh.connection import connected
    from mesh.status import read

    with connected(data) as connection:
        found = read(connection)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    if not found.is_healthy:
        raise typer.Exit(1)


def _print(found: Status) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table("Health", ("service", "state"), found.health.items()))
    heads = (
        (head.master_id, head.epoch, head.sequence, head.connected, _or_dash(head.archive_behind))
        for head in found.heads
    )
    console.print(_table("Heads", ("master", "epoch", "sequence", "connected", "archive behind"), heads))
    streams = ((s.user_id, s.master_id, s.sent, s.acknowledged, s.lag, s.state) for s in found.streams)
    console.print(_table("Streams", ("user", "master", "sent", "acknowledged", "lag", "state"), streams))
    console.print(f"Archive: {_or_dash(found.archived_signals)} signals")
    if found.risk:
        console.print(
            f"Risk: last check {found.risk.last_check_at}, model {found.risk.model_version}, "
            f"{len(found.risk.at_risk)} users below the warning score",
            soft_wrap=True,
        )
        for user_id, score in found.risk.at_risk.items():
            console.print(f"  {user_id}  trust {score:.1f}")
    for problem in found.problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _table(title: str, columns: tuple[str, ...], rows: object) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for column in columns:
        table.add_column(column)
    for row in rows:  # type: ignore[attr-defined]  # any iterable of rows
        table.add_row(*map(str, row))
    return table
