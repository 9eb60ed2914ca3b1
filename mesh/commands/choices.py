"""Values that options of more than one command take; it decides nothing."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


def folder(text: str) -> Path:
    """The folder that an option names. A variable that is not set must not mean the current one.

    Raises:
        BadParameter: it names none.
    """
    if not text:
        raise typer.BadParameter("an empty name: name a folder")
    return Path(text)


FOLDER = "<dir>"

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of the running mesh, as given to `ecp up --data`.",
        parser=folder,
        metavar=FOLDER,
    ),
]
