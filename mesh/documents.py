"""Finds what the documents say that is not so: links that lead nowhere, commands and names that there are not.

It cannot tell whether a sentence is true.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)
COMMAND = re.compile(r"(?:\./ecp |(?<=`)ecp |^ {4,}ecp )(?=[a-z-])([^`\n]*)", re.MULTILINE)
SETTING = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
IDENTIFIER = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
METRIC_SUFFIX = re.compile(r"_(?:total|bucket|sum|count)$")
# Where a command ends: at a comment, at what the shell makes of it, or at the words of a list beside it.
AFTER_COMMAND = re.compile(r"\s#|\s{2,}|[|>;,:]|&&|\.(?:\s|$)|\)")
OTHERS_SETTINGS = ("UV_", "PIP_")
"""Tools of others read these."""
SOURCE_SUFFIXES = {
    ".py",
    ".proto",
    ".sql",
    ".sh",
    ".yaml",
    ".yml",
    ".toml",
    ".json",
    ".ts",
    ".env",
    ".lua",
    "",
}


def faults(root: Path) -> list[str]:
    """One line for each thing in the clone's documents that is not so, with file and line."""
    names = _ours(root)
    documents = [name for name in names if name.endswith(".md")]
    words = _words(root, [name for name in names if Path(name).suffix in SOURCE_SUFFIXES])
    found: list[str] = []
    for name in documents:
        text = (root / name).read_text(encoding="utf-8")
        wrong = [*_links(root, name, text), *_commands(text), *_names(text, words)]
        found += (f"{name}:{text.count(chr(10), 0, at) + 1}: {what}" for at, what in sorted(wrong))
    return found


def _ours(root: Path) -> list[str]:
    """The clone's files, also those that are not added yet; none that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split("\0") if name and (root / name).is_file()]


def _words(root: Path, names: list[str]) -> set[str]:
    """All identifiers of the source, in small letters."""
    words: set[str] = set()
    for name in names:
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        words.update(re.findall(r"[a-z][a-z0-9_]*", text.lower()))
    return words


def _links(root: Path, name: str, text: str) -> Iterator[tuple[int, str]]:
    for match in LINK.finditer(text):
        path, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", match[1]):
            continue
        target = (root / name).parent / path if path else root / name
        if not target.exists():
            yield match.start(), f"there is no {match[1]}"
        elif anchor and anchor not in _anchors(target):
            yield match.start(), f"{path or name} has no heading for #{anchor}"


@cache
def _anchors(document: Path) -> set[str]:
    text = document.read_text(encoding="utf-8")
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def _commands(text: str) -> Iterator[tuple[int, str]]:
    for match in COMMAND.finditer(text):
        line = AFTER_COMMAND.split(match[1], maxsplit=1)[0]
        try:
            words = shlex.split(line)
        except ValueError:
            words = line.split()
        if problem := _problem(words):
            yield match.start(), f"ecp {line.strip()}: {problem}"


def _problem(words: list[str]) -> str | None:
    command, rest = _command_line(), list(words)
    while rest and not rest[0].startswith("-") and (subcommands := getattr(command, "commands", None)):
        if rest[0].isupper():
            return None  # a place for any of them
        if rest[0] not in subcommands:
            return f"no command {rest[0]}"
        command = subcommands[rest.pop(0)]
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {"-h", "--help"}.union(*((*param.opts, *param.secondary_opts) for param in command.params))
    options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    unknown = [option for option in options if option not in known]
    return f"no option {unknown[0]}" if unknown else None


@cache
def _command_line() -> Any:
    import typer

    from mesh.cli import app

    return typer.main.get_command(app)


def _names(text: str, words: set[str]) -> Iterator[tuple[int, str]]:
    for match in SPAN.finditer(text):
        name = match[1].partition("=")[0]
        if name.startswith(OTHERS_SETTINGS) or not (SETTING.fullmatch(name) or IDENTIFIER.fullmatch(name)):
            continue
        if not {name.lower(), METRIC_SUFFIX.sub("", name)} & words:
            yield match.start(), f"nothing in the source is called {name}"
