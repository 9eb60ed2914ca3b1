"""What long commands leave: files first and whole, lines for people after them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from mesh.errors import ConfigurationError
from mesh.outcome import check_folder, check_writable, finish, write_json


@dataclass
class Report:
    is_sound: bool = True
    lines: tuple[str, ...] = ("all [bold]well",)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.is_sound}

    def summary(self) -> list[str]:
        return list(self.lines)


def test_the_look_beforehand_leaves_no_empty_file(tmp_path: Path) -> None:
    check_writable(None, tmp_path / "fine.json")
    assert list(tmp_path.iterdir()) == []


def test_the_look_beforehand_leaves_an_older_result_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "older.json"
    file.write_text("{}")
    check_writable(file)
    assert file.read_text() == "{}"


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write .*x\.json"):
        check_writable(tmp_path / "fine.json", tmp_path / "nowhere" / "x.json")


@pytest.mark.parametrize("place", ["file/in/it", "file"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(None)
    check_folder(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(ConfigurationError, match=r"cannot write to .*: choose another folder"):
        check_folder(tmp_path / place)


def test_the_file_is_written_before_the_first_line(tmp_path: Path) -> None:
    class GoneReport(Report):
        def summary(self) -> list[str]:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        finish(GoneReport(), tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"ok": True}


def test_the_lines_are_printed_though_the_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        finish(Report(), tmp_path)
    assert capsys.readouterr().out == "all [bold]well\n"


def test_a_broken_promise_is_exit_code_1(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as ended:
        finish(Report(is_sound=False), tmp_path / "result.json")
    assert ended.value.exit_code == 1
    assert json.loads((tmp_path / "result.json").read_text()) == {"ok": False}


def test_without_a_file_nothing_is_written() -> None:
    write_json(None, {})
