"""Every rendered manifest against Kubernetes' own schemas, strictly: an unknown field is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

Manifest = dict[str, Any]

OLDEST_KUBERNETES = "1.30"
NEWEST_KUBERNETES = "1.37"


def _validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
def test_every_manifest_is_valid(manifests: list[Manifest], version: str) -> None:
    assert manifests
    for manifest in manifests:
        _validate(manifest, version)


def _rename(mapping: Manifest, name: str, misspelt: str) -> None:
    mapping[misspelt] = mapping.pop(name)


MISSPELLINGS: dict[str, Callable[[Manifest], None]] = {
    "readynessProbe": lambda container: _rename(container, "readinessProbe", "readynessProbe"),
    "failureTreshold": lambda container: _rename(
        container["livenessProbe"], "failureThreshold", "failureTreshold"
    ),
    "serviceName": lambda container: _rename(container["readinessProbe"]["grpc"], "service", "serviceName"),
    "preStopp": lambda container: _rename(container["lifecycle"], "preStop", "preStopp"),
}


@pytest.mark.parametrize("misspelt", MISSPELLINGS)
def test_a_misspelt_field_is_refused(render: Callable[[str], list[Manifest]], misspelt: str) -> None:
    deployment = next(manifest for manifest in render("production") if manifest["kind"] == "Deployment")
    _validate(deployment, NEWEST_KUBERNETES)
    MISSPELLINGS[misspelt](deployment["spec"]["template"]["spec"]["containers"][0])
    with pytest.raises(kubernetes_validate.ValidationError, match=misspelt):
        _validate(deployment, NEWEST_KUBERNETES)
