"""Where the TypeScript example cannot be built, it is said why; where it can, it is built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh import typescript
from mesh.clone import ROOT


def program(folder: Path, name: str, says: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, with nothing beside it but the shell."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_machine_without_node_is_told_so(only: Path) -> None:
    with pytest.raises(typescript.NoNodeError, match="there is no node on this machine"):
        typescript.command()


@pytest.mark.parametrize("version", ["v18.20.4", "what?", ""])
def test_a_node_that_is_too_old_is_named(only: Path, version: str) -> None:
    program(only, "node", f"echo '{version}'")
    with pytest.raises(typescript.NoNodeError, match="20 or newer is needed"):
        typescript.command()


def test_a_machine_without_npm_is_told_so(only: Path) -> None:
    program(only, "node", "echo v20.1.0")
    with pytest.raises(typescript.NoNodeError, match="there is no npm"):
        typescript.command()


def test_a_registry_that_is_out_of_reach_is_no_fault_of_the_example(
    only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "typescript"
    folder.mkdir()
    monkeypatch.setattr(typescript, "FOLDER", folder)
    program(only, "node", "echo v20.1.0")
    program(only, "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(typescript.NoNodeError, match="npm ci failed: npm error code ENOTFOUND"):
        typescript.command()


def test_it_is_built_once_for_each_state_of_its_sources(
    only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "typescript"
    (folder / "src").mkdir(parents=True)
    (folder / "package-lock.json").write_text("{}")
    monkeypatch.setattr(typescript, "FOLDER", folder)
    monkeypatch.setattr(typescript, "PROGRAM", folder / "build" / "subscriber.js")
    program(only, "node", "echo v20.1.0")
    made = 'case $1 in ci) /bin/mkdir -p node_modules;; run) /bin/mkdir -p build;; esac; echo "$1" >> ran'
    program(only, "npm", made)

    def ran() -> list[str]:
        return (folder / "ran").read_text().split()

    assert typescript.command() == [str(only / "node"), str(folder / "build" / "subscriber.js")]
    typescript.command()
    assert ran() == ["ci", "run"]
    (folder / "src" / "subscriber.ts").write_text("changed")
    typescript.command()
    assert ran() == ["ci", "run", "run"]
    (folder / "package-lock.json").write_text('{"changed": true}')
    typescript.command()
    assert ran() == ["ci", "run", "run", "ci", "run"]


def test_the_lock_file_has_a_hash_for_every_package_and_names_no_host() -> None:
    lock = (ROOT / "clients" / "typescript" / "package-lock.json").read_text(encoding="utf-8")
    assert lock.count('"version"') - 2 == lock.count('"integrity": "sha512-')
    assert "://" not in "".join(line for line in lock.splitlines() if "resolved" in line)
    assert os.linesep in lock
