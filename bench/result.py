"""What a benchmark found: medians beside their yardsticks, as JSON and as a table; it measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

_TABLE_COLUMNS: Final = 130


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `ratio` is against the yardstick of the same runs, and more is always better."""

    name: str
    value: float
    unit: str
    yardstick: float | None = None
    ratio: float | None = None
    runs: int = 1
    spread: float = 0.0
    """Largest less smallest, over the median."""
    disturbed_runs: int = 0
    """Of all runs, those in which others used too much of the machine."""
    values: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def result_of(
    name: str,
    unit: str,
    values: Sequence[float],
    yardsticks: Sequence[float] = (),
    *,
    less_is_better: bool = False,
    disturbed_runs: int = 0,
    details: dict[str, Any] | None = None,
) -> Result:
    """The median of all runs, against the median of the yardstick's runs."""
    value = median(values)
    yardstick = median(yardsticks) if yardsticks else None
    ratio = None
    if yardstick and value:
        ratio = yardstick / value if less_is_better else value / yardstick
    return Result(
        name=name,
        value=_rounded(value),
        unit=unit,
        yardstick=None if yardstick is None else _rounded(yardstick),
        ratio=None if ratio is None else round(ratio, 3),
        runs=len(values),
        spread=round((max(values) - min(values)) / value, 3) if value else 0.0,
        disturbed_runs=disturbed_runs,
        values=[_rounded(one) for one in values],
        details=details or {},
    )


def _rounded(value: float) -> float:
    return round(value) if abs(value) >= 1_000 else float(f"{value:.4g}")


def as_json(machine: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """{"machine", "results"}, for a file."""
    return {"machine": machine, "results": [asdict(result) for result in results]}


def print_table(console: Console, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """Prints the machine and every figure."""
    line = ", ".join(f"{name} {value}" for name, value in machine.items())
    console.print(line, highlight=False, soft_wrap=True)
    table = Table()
    for heading in ("figure", "value", "unit", "yardstick", "ratio", "runs", "spread"):
        is_text = heading in ("figure", "unit")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=is_text)
    for result in results:
        disturbed = f" ({result.disturbed_runs} disturbed)" if result.disturbed_runs else ""
        table.add_row(
            result.name,
            _shown(result.value),
            result.unit,
            _shown(result.yardstick),
            "" if result.ratio is None else f"{result.ratio:.2f}",
            f"{result.runs}{disturbed}",
            f"{result.spread:.0%}",
        )
    if not console.is_terminal:
        # Into a file or a pipe Rich would squeeze it into 80 columns.
        console.width = max(console.width, _TABLE_COLUMNS)
    console.print(table)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
