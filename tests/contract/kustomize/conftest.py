"""Renders each overlay once per run with a real kubectl; the tests beside it judge what comes out."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

RENDER_SECONDS_MAX = 60


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def fetch_kubectl(repository: Path) -> ModuleType:
    """kustomize/fetch_kubectl.py, which is a program and part of no package."""
    spec = importlib.util.spec_from_file_location(
        "fetch_kubectl", repository / "kustomize" / "fetch_kubectl.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kubectl(fetch_kubectl: ModuleType) -> Path:
    """A kubectl that can render the manifests; in CI its absence is a failure, elsewhere a skip."""
    found, seen = fetch_kubectl.find(Path(sys.prefix))
    if found is None:
        advice = f"{seen}; run: .venv/bin/python kustomize/fetch_kubectl.py"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(advice)
    return found


@pytest.fixture(scope="session")
def render(kubectl: Path, repository: Path) -> Callable[[str], list[Manifest]]:
    """Renders an overlay by its name; each call returns manifests of its own, which a test may change."""

    @cache
    def rendered(overlay: str) -> list[Manifest]:
        command = [str(kubectl), "kustomize", str(repository / "kustomize" / "overlays" / overlay)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=RENDER_SECONDS_MAX
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, f"kubectl warns: {done.stderr}"
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return lambda overlay: copy.deepcopy(rendered(overlay))


@pytest.fixture(params=["dev", "staging", "production"])
def overlay(request: pytest.FixtureRequest) -> str:
    """Each overlay's name in turn."""
    return str(request.param)


@pytest.fixture
def manifests(render: Callable[[str], list[Manifest]], overlay: str) -> list[Manifest]:
    """All that the overlay renders, in its order."""
    return render(overlay)


@pytest.fixture
def named(manifests: list[Manifest]) -> dict[str, dict[str, Manifest]]:
    """The same, by kind and then by name."""
    by_kind: dict[str, dict[str, Manifest]] = {}
    for manifest in manifests:
        same_kind = by_kind.setdefault(manifest["kind"], {})
        assert manifest["metadata"]["name"] not in same_kind
        same_kind[manifest["metadata"]["name"]] = manifest
    return by_kind
