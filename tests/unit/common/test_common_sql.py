from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common import sql
from services.common.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Queries:
    get_user: str
    list_users: str


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def make(**files: str) -> str:
        name = f"sql_example_{tmp_path.name}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for stem, text in files.items():
            (folder / f"{stem}.sql").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop(name, None)
        return name

    return make


GOOD = "-- users\n-- name: get_user\nselect 1\n\n-- name: list_users\n-- in order\nselect 2\n"


def test_statements_are_bound_to_fields(package: Callable[..., str]) -> None:
    queries = sql.bind(Queries, package(queries=GOOD))
    assert queries.get_user == "select 1"
    assert queries.list_users == "-- in order\nselect 2"
    with pytest.raises(AttributeError):
        queries.get_user = "x"


def test_several_files_are_one_set(package: Callable[..., str]) -> None:
    name = package(one="-- name: get_user\nselect 1", two="-- name: list_users\nselect 2")
    assert sql.bind(Queries, name, "one.sql", "two.sql").list_users == "select 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-- name: get_user\nselect 1", r"only the class has \['list_users'\]"),
        (GOOD + "-- name: other\nselect 3", r"only the SQL has \['other'\]"),
        ("select 0\n" + GOOD, r"queries.sql:1: SQL before the first"),
        (GOOD + "-- name: get_user\nselect 3", "used twice"),
        (GOOD + "-- name: Bad-Name\nselect 3", "malformed"),
        (GOOD + "-- name: empty\n-- nothing\n", "query empty is empty"),
    ],
)
def test_a_file_that_does_not_fit_fails_at_once(package: Callable[..., str], text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        sql.bind(Queries, package(queries=text))


def test_a_missing_file_fails_at_once(package: Callable[..., str]) -> None:
    with pytest.raises(ConfigurationError, match=r"queries\.sql is missing"):
        sql.bind(Queries, package())
