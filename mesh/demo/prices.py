"""Real EUR/USD prices as a stream of ticks; reads one file and knows nothing of trading.

Source: 5,000 hourly bars, 2017-04-19 to 2018-02-07 UTC, as distributed with the PyPI package `backtesting` 0.6.6.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import cycle
from pathlib import Path

BARS_FILE = Path(__file__).with_name("data") / "eurusd-h1.csv"
E8 = 100_000_000


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour of prices, each in units of 1e-8."""

    open_e8: int
    high_e8: int
    low_e8: int
    close_e8: int

    def path(self) -> tuple[int, int, int, int]:
        """The four prices in the order in which they most likely came: a rising bar dips first."""
        rising = self.close_e8 >= self.open_e8
        turns = (self.low_e8, self.high_e8) if rising else (self.high_e8, self.low_e8)
        return (self.open_e8, *turns, self.close_e8)


def read_bars(path: Path = BARS_FILE) -> list[Bar]:
    """All bars of a file with the columns Open, High, Low and Close, in order.

    Raises:
        ValueError: a row that is not four positive prices; names the row.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [_bar(number, row) for number, row in enumerate(csv.DictReader(file), start=2)]


def _bar(number: int, row: dict[str, str]) -> Bar:
    try:
        prices = [int(Decimal(row[name]) * E8) for name in ("Open", "High", "Low", "Close")]
    except (KeyError, ArithmeticError) as error:
        raise ValueError(f"row {number}: not four prices: {row}") from error
    if min(prices) <= 0:
        raise ValueError(f"row {number}: a price is not positive: {row}")
    return Bar(*prices)


def ticks(bars: list[Bar], start: int = 0) -> Iterator[int]:
    """Prices in 1e-8 from bar `start` on, without end: after the last bar comes the first."""
    if not bars:
        raise ValueError("no bars")
    start %= len(bars)
    for bar in cycle(bars[start:] + bars[:start]):
        yield from bar.path()
