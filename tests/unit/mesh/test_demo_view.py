"""What the demo's screen makes of the board."""

from __future__ import annotations

import io

from rich.console import Console

from mesh.demo.board import Board
from mesh.demo.view import draw


def test_events_are_shown_to_the_letter() -> None:
    board = Board(seconds=5)
    board.tell("subscriber-01: paused. Refused [12 of 14] [/red]")
    console = Console(file=io.StringIO(), width=120)
    console.print(draw(board))
    shown = console.file.getvalue()
    assert "subscriber-01: paused. Refused [12 of 14] [/red]" in shown
