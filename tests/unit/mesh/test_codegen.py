"""What counts as stale in gen/: files that changed, that are missing, and that nothing makes any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mesh import codegen

MODULE = "gen/python/execution/common/v1/a_pb2.py"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with three generated files, whose generator makes exactly those."""
    root, made = tmp_path / "clone", tmp_path / "made"
    for name in (MODULE, "gen/python/execution/py.typed", "gen/betterproto/ecp_betterproto/__init__.py"):
        for folder in (root, made):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("made\n")
    monkeypatch.setattr(codegen, "ROOT", root)
    monkeypatch.setattr(codegen, "_generate", lambda out: shutil.copytree(made, out, dirs_exist_ok=True))
    return root


def test_what_was_just_made_is_not_stale(clone: Path) -> None:
    assert codegen.stale_files() == []


def test_each_kind_of_difference_is_named(clone: Path) -> None:
    (clone / MODULE).write_text("edited by hand\n")
    (clone / "gen/python/execution/py.typed").unlink()
    (clone / "gen/betterproto/ecp_betterproto/removed.py").write_text("of a proto that is gone\n")
    assert codegen.stale_files() == [
        "gen/betterproto/ecp_betterproto/removed.py",
        MODULE,
        "gen/python/execution/py.typed",
    ]


def test_compiled_python_is_not_a_difference(clone: Path) -> None:
    cache = (clone / MODULE).parent / "__pycache__"
    cache.mkdir()
    (cache / "a_pb2.cpython-311.pyc").write_bytes(b"\0")
    assert codegen.stale_files() == []
