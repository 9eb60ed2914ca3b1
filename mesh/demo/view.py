"""The demo's screen: draws a Board with rich, or writes a line every few seconds where there is no screen."""

from __future__ import annotations

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mesh.demo.board import Board, SubscriberRow

SUBSCRIBER_ROWS_MAX = 14
PLAIN_LINE_SECONDS = 5.0
STATE_STYLES = {"synced": "green", "running": "green", "connecting": "yellow", "starting": "yellow"}


def draw(board: Board) -> Group:
    """The whole screen."""
    return Group(_headline(board), _middle(board), _subscribers(board), _events(board))


def plain_line(board: Board) -> str:
    """One line for a log."""
    return (
        f"{board.elapsed_seconds:5.1f} s  {board.phase}: {board.signals_acknowledged} signals acknowledged, "
        f"{board.deliveries} deliveries ({board.deliveries_per_second:.0f}/s), latency p50 {_ms(board.latency_p50_ms)} "
        f"p99 {_ms(board.latency_p99_ms)}"
    )


class PlainReporter:
    """Writes a line every few seconds and each event once, on stderr: what --no-view shows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due_seconds = 0.0

    def show(self, board: Board) -> None:
        """Writes what is due."""
        while board.events:
            self._say(board.events.popleft())
        if board.elapsed_seconds >= self._due_seconds:
            self._due_seconds = board.elapsed_seconds + PLAIN_LINE_SECONDS
            self._say(plain_line(board))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _headline(board: Board) -> Panel:
    text = Text.assemble(
        (f"{board.phase}  ", "bold"),
        f"{min(board.elapsed_seconds, board.seconds):.0f} of {board.seconds:.0f} s   ",
        (f"{board.signals_acknowledged}", "bold cyan"), f" signals acknowledged ({board.signals_per_second:.0f}/s)   ",
        (f"{board.deliveries}", "bold cyan"), f" deliveries ({board.deliveries_per_second:.0f}/s)   ",
        "latency p50 ", (_ms(board.latency_p50_ms), "bold"), "  p99 ", (_ms(board.latency_p99_ms), "bold"),
    )  # fmt: skip
    return Panel(
        text, title="Execution Control Plane: master → ingest → log → fanout → subscriber", title_align="left"
    )


def _middle(board: Board) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=3)
    grid.add_column(ratio=2)
    grid.add_row(_masters(board), _services(board))
    return grid


def _masters(board: Board) -> Table:
    table = _table("master", "account", "sent", "acknowledged", "positions", "orders", title="Masters")
    for row in board.masters.values():
        table.add_row(
            row.name, row.mode, str(row.sent), str(row.acknowledged), str(row.positions), str(row.orders)
        )
    return table


def _services(board: Board) -> Table:
    table = _table("service", "state", "restarts", title="Services")
    for row in board.services.values():
        table.add_row(row.name, _styled(row.state), str(row.restarts))
    return table


def _subscribers(board: Board) -> Table:
    rows = list(board.subscribers.values())
    table = _table("subscriber", "behaviour", "state", "received", "refused", "trust", title="Subscribers")
    for row in rows[:SUBSCRIBER_ROWS_MAX]:
        table.add_row(*_subscriber_cells(row))
    hidden = rows[SUBSCRIBER_ROWS_MAX:]
    if hidden:
        received, refused = sum(row.received for row in hidden), sum(row.refused for row in hidden)
        table.add_row(f"… and {len(hidden)} more", "", "", str(received), str(refused), "")
    return table


def _subscriber_cells(row: SubscriberRow) -> tuple[str, str, Text, str, str, Text]:
    trust = Text("-") if row.trust is None else Text(f"{row.trust:.0f}", "red" if row.trust < 50 else "")
    return row.name, row.behaviour, _styled(row.state), str(row.received), str(row.refused), trust


def _styled(state: str) -> Text:
    return Text(state, STATE_STYLES.get(state, "red"))


def _events(board: Board) -> Panel:
    return Panel(Text("\n".join(board.events) or "…"), title="Events", title_align="left")


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", expand=True, box=None, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 or column == "state" else "right", no_wrap=True)
    return table
