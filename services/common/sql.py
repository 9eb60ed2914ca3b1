"""Binds the named statements of a queries.sql to typed attributes at import; it runs no SQL."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from typing import TypeVar

from services.common.errors import ConfigurationError

_HEADER = re.compile(r"^--\s*name:\s*(?P<name>\S+)\s*$")
_NAME = re.compile(r"[a-z][a-z0-9_]*")

QueriesT = TypeVar("QueriesT")


def bind(queries: type[QueriesT], package: str, *file_names: str) -> QueriesT:
    """Reads `queries.sql` (or the given files) of `package` into the dataclass `queries`, whose fields are
    all `str`.

    The names in the files and the fields of the class must be the same set, so a misspelt name fails when the
    module is imported and mypy knows every statement.

    Raises:
        ConfigurationError: the file is missing, a name is malformed, given twice, missing, or unused.
    """
    if not dataclasses.is_dataclass(queries):
        raise TypeError(f"{queries.__name__} must be a dataclass of str fields")
    statements: dict[str, str] = {}
    for file_name in file_names or ("queries.sql",):
        for name, text in parse(_read(package, file_name), where=f"{package}/{file_name}").items():
            if name in statements:
                raise ConfigurationError(f"query {name} is defined twice", where=f"{package}/{file_name}")
            statements[name] = text
    fields = {field.name for field in dataclasses.fields(queries)}
    _require_same_names(fields, set(statements), queries.__name__, package)
    return queries(**statements)


def parse(text: str, *, where: str = "queries.sql") -> dict[str, str]:
    """The statements of a file by name: each begins after a line `-- name: foo` and ends at the next one.

    Comments inside a statement stay in it (the server ignores them); text before the first header must be
    comments.

    Raises:
        ConfigurationError: SQL before the first header, a malformed or doubled name, or an empty statement.
    """
    statements: dict[str, str] = {}
    name: str | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header is None:
            if name is None and line.strip() and not line.startswith("--"):
                raise ConfigurationError("SQL before the first '-- name:' header", where=f"{where}:{number}")
            lines.append(line)
            continue
        _finish(statements, name, lines, where)
        name, lines = header["name"], []
        if _NAME.fullmatch(name) is None or name in statements:
            raise ConfigurationError(
                f"query name {name!r} is malformed or used twice", where=f"{where}:{number}"
            )
    _finish(statements, name, lines, where)
    return statements


def _finish(statements: dict[str, str], name: str | None, lines: list[str], where: str) -> None:
    if name is None:
        return
    text = "\n".join(lines).strip()
    if not any(line.strip() and not line.lstrip().startswith("--") for line in lines):
        raise ConfigurationError(f"query {name} is empty", where=where)
    statements[name] = text


def _read(package: str, file_name: str) -> str:
    try:
        return resources.files(package).joinpath(file_name).read_text(encoding="utf-8")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ConfigurationError(
            f"{file_name} is missing from {package}", do="reinstall the package"
        ) from error


def _require_same_names(fields: set[str], names: set[str], class_name: str, package: str) -> None:
    missing, unused = sorted(fields - names), sorted(names - fields)
    if missing or unused:
        raise ConfigurationError(
            f"{class_name} and its SQL differ: only the class has {missing}, only the SQL has {unused}",
            where=package,
        )
