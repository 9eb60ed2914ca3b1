"""What a long command leaves: its progress on stderr, files for scripts, and lines for people; it measures nothing.

Files come first. A reader of the lines that goes away, such as `head`, takes nothing from those who read the files.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import typer
from rich.console import Console

from mesh.errors import ConfigurationError
from mesh.process import run_until_signalled

T = TypeVar("T")

Tell = Callable[[str], None]


class Report(Protocol):
    """What a torture or a fuzzer ends with."""

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept."""
        ...

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        ...

    def summary(self) -> list[str]:
        """For people."""
        ...


def check_writable(*paths: Path | None) -> None:
    """Finds out before an hour of work that its result could not be kept; leaves the files as they are.

    Raises:
        ConfigurationError: one cannot be written.
    """
    for path in filter(None, paths):
        was_there = os.path.lexists(path)
        try:
            path.open("a", encoding="utf-8").close()
            if not was_there:
                # An empty file would not be JSON, and may be all that an interrupted command leaves.
                path.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {path} ({error.strerror}): choose another file"
            ) from error


def check_folder(path: Path | None) -> None:
    """Makes the folder, if one was asked for, before an hour of work that is to leave something in it.

    Raises:
        ConfigurationError: it cannot be made or written.
    """
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {path} ({error.strerror}): choose another folder"
        ) from error


def write_text(path: Path | None, text: str) -> None:
    """Writes the file, if one was asked for.

    Raises:
        ConfigurationError: it cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path} ({error.strerror}): the result is lost") from error


def write_json(path: Path | None, document: object) -> None:
    """Writes the document as JSON, if a file was asked for.

    Raises:
        ConfigurationError: it cannot be written.
    """
    write_text(path, json.dumps(document, indent=2) + "\n")


def run_telling(work: Callable[[Tell], Coroutine[Any, Any, T]]) -> T:
    """Runs what `work` makes until it ends or a signal comes; what it tells are lines on stderr."""
    progress = Console(stderr=True)
    return run_until_signalled(
        work(lambda line: progress.print(line, markup=False, highlight=False, soft_wrap=True))
    )


def finish(report: Report, json_file: Path | None) -> None:
    """Leaves the report in the file and in lines on stdout.

    Raises:
        Exit: with 1, when a promise was broken.
        ConfigurationError: the file cannot be written; the lines are printed all the same.
    """
    try:
        write_json(json_file, report.as_json())
    finally:
        for line in report.summary():
            typer.echo(line)
    if not report.is_sound:
        raise typer.Exit(1)
