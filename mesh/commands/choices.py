"""Values that options of more than one command take; it decides nothing."""

from __future__ import annotations

from enum import StrEnum


class Edge(StrEnum):
    """What carries the fan-out's streams."""

    AIO = "aio"
    H2 = "h2"


class LogLevel(StrEnum):
    """The least of what the services log."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
