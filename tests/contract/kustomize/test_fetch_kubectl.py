"""Which kubectl the manifests are rendered with, and what is said when there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("KUBECTL", raising=False)


def _program(path: Path, *, major: str = "1", minor: str) -> Path:
    """Something that answers `kubectl version --client -o json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = json.dumps({"clientVersion": {"major": major, "minor": minor}})
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_the_environments_own_comes_before_path(
    fetch_kubectl: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(_program(tmp_path / "path" / "kubectl", minor="33").parent))
    own = _program(fetch_kubectl.kubectl_in(tmp_path / "venv"), minor="32+")
    found, seen = fetch_kubectl.find(tmp_path / "venv")
    assert found == own
    assert seen.endswith("1.32")


def test_one_that_is_too_old_is_passed_over(
    fetch_kubectl: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = _program(fetch_kubectl.kubectl_in(tmp_path / "venv"), minor="20")
    assert "is 1.20" in fetch_kubectl.find(tmp_path / "venv")[1]
    assert fetch_kubectl.find(tmp_path / "venv")[0] is None
    new = _program(tmp_path / "path" / "kubectl", minor="35")
    monkeypatch.setenv("PATH", str(new.parent))
    assert fetch_kubectl.find(tmp_path / "venv")[0] == new
    assert old.exists()


def test_one_that_does_not_run_is_passed_over(fetch_kubectl: ModuleType, tmp_path: Path) -> None:
    broken = fetch_kubectl.kubectl_in(tmp_path / "venv")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    found, seen = fetch_kubectl.find(tmp_path / "venv")
    assert found is None
    assert "cannot be run" in seen


def test_a_named_one_is_the_only_one_considered(
    fetch_kubectl: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _program(fetch_kubectl.kubectl_in(tmp_path / "venv"), minor="35")
    monkeypatch.setenv("KUBECTL", str(tmp_path / "nowhere"))
    found, seen = fetch_kubectl.find(tmp_path / "venv")
    assert found is None
    assert str(tmp_path / "nowhere") in seen


def test_another_machine_is_told_what_to_do(
    fetch_kubectl: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(fetch_kubectl.FetchError, match="put it on PATH, or name it in KUBECTL"):
        fetch_kubectl.fetch(tmp_path / "kubectl")
    assert not (tmp_path / "kubectl").exists()


def test_the_download_is_pinned_by_version_and_hash(repository: Path) -> None:
    lock = (repository / "kustomize" / "kubectl.lock").read_text()
    assert re.search(r"^[a-z0-9-]+==[0-9.]+ \\\n +--hash=sha256:[0-9a-f]{64}$", lock, re.MULTILINE)
