"""What `ecp test` makes of its arguments before pytest gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.commands.test import _from_anywhere, _processes


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "test_it.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def test_paths_of_the_caller_s_folder_become_absolute(in_a_folder: Path) -> None:
    assert _from_anywhere(["-q", "test_it.py::test_x[a]", "mesh"]) == [
        "-q",
        f"{in_a_folder}/test_it.py::test_x[a]",
        f"{in_a_folder}/mesh",
    ]


@pytest.mark.parametrize("option", ["-k", "-m", "-p"])
def test_a_word_that_is_no_path_stays_though_a_folder_has_its_name(in_a_folder: Path, option: str) -> None:
    assert _from_anywhere([option, "mesh", "mesh"]) == [option, "mesh", f"{in_a_folder}/mesh"]


@pytest.mark.parametrize("arguments", [["-n", "0"], ["-n3"], ["--pdb"], ["-s"], ["--dist=load"]])
def test_whoever_chooses_gets_no_processes_beside(arguments: list[str]) -> None:
    assert _processes(arguments) == []
