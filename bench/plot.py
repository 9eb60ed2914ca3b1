"""Line charts as plain SVG, with logarithmic axes; it knows nothing of what it draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 820, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 200, 40, 50
_MS_MIN: Final = 0.001  # a logarithmic axis has no 0
_COLOURS: Final = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#7f7f7f", "#bcbd22")


@dataclass(frozen=True, slots=True)
class Line:
    """One labelled line; all numbers must be positive."""

    label: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def latency_chart(
    title: str,
    rates: str,
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]],
    *,
    yardstick: str,
) -> str:
    """Percentiles in ms by rate as SVG, the yardstick's dashed; a curve without points is left out."""
    lines = [
        Line(
            f"{who} {rank}",
            [(rate, max(found[rank], _MS_MIN)) for rate, found in points],
            dashed=who == yardstick,
        )
        for who, points in curves.items()
        for rank in ("p50", "p99", "p99.9")
        if points
    ]
    return line_chart(title, rates, "ms", lines)


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value lies, in pixels."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def marks(self) -> Iterator[float]:
        """1, 2 and 5 times each power of ten within."""
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            for factor in (1, 2, 5):
                value = factor * 10.0**power
                if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9:
                    yield value


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    logs = [math.log10(value) for value in values]
    low, high = min(logs), max(logs)
    margin = max(0.05, (high - low) * 0.05)
    return _Axis(low - margin, high + margin, start, end)


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """An SVG document.

    Raises:
        ValueError: there is no point, or one is not positive.
    """
    points = [point for line in lines for point in line.points]
    if not points or min(min(point) for point in points) <= 0:
        raise ValueError("a logarithmic chart needs points, all of them positive")
    x = _axis([point[0] for point in points], _LEFT, _WIDTH - _RIGHT)
    y = _axis([point[1] for point in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
        *_grid(x, y),
    ]
    for index, line in enumerate(lines):
        parts += _drawn(line, x, y, _COLOURS[index % len(_COLOURS)], _TOP + 16 + 20 * index)
    return "\n".join([*parts, "</svg>\n"])


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for value in x.marks():
        at = x.place(value)
        yield f'<path d="M{at} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>'
        yield f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{value:,g}</text>'
    for value in y.marks():
        at = y.place(value)
        yield f'<path d="M{_LEFT} {at}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>'


def _drawn(line: Line, x: _Axis, y: _Axis, colour: str, label_y: int) -> Iterator[str]:
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    places = [(x.place(one), y.place(other)) for one, other in line.points]
    path = "M" + "L".join(f"{one} {other}" for one, other in places)
    yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    for one, other in places:
        yield f'<circle cx="{one}" cy="{other}" r="3" fill="{colour}"/>'
    label_x = _WIDTH - _RIGHT + 14
    yield f'<path d="M{label_x} {label_y - 4}h22" stroke="{colour}" stroke-width="2"{dash}/>'
    yield f'<text x="{label_x + 28}" y="{label_y}">{escape(line.label)}</text>'
