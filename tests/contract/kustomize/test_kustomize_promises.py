"""What each environment promises to its operators: names, replicas, sizes, ways in, images and secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

Manifest = dict[str, Any]
Named = dict[str, dict[str, Manifest]]

NAMESPACE = "execution-control"
SERVICES = {"ingest", "fanout", "ledger", "risk"}
BACKEND = {"requests": {"memory": "512Mi", "cpu": "500m"}, "limits": {"memory": "1Gi", "cpu": "1000m"}}
DETECTOR = {"requests": {"memory": "256Mi", "cpu": "250m"}, "limits": {"memory": "512Mi", "cpu": "500m"}}
REPLICAS = {
    "dev": {"ingest": 1, "fanout": 1, "ledger": 1, "risk": 1},
    "staging": {"ingest": 2, "fanout": 2, "ledger": 2, "risk": 2},
    "production": {"ingest": 3, "fanout": 3, "ledger": 3, "risk": 2},
}
PRIVATE_NETWORKS = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}
SECRET_ROW = re.compile(r"^\| `([a-z-]+)` \| `([a-z-]+)` \|", re.MULTILINE)


def _pods(named: Named) -> dict[str, Manifest]:
    workloads = named["Deployment"] | named["Job"]
    return {name: workload["spec"]["template"]["spec"] for name, workload in workloads.items()}


def _bytes_and_millicores(amounts: dict[str, str]) -> tuple[int, int]:
    units = {"Mi": 2**20, "Gi": 2**30}
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", amounts["memory"]).groups()
    return int(number) * units[unit], int(amounts["cpu"].removesuffix("m"))


def test_everything_lives_in_the_one_namespace(manifests: list[Manifest]) -> None:
    namespaces = [manifest for manifest in manifests if manifest["kind"] == "Namespace"]
    assert [namespace["metadata"]["name"] for namespace in namespaces] == [NAMESPACE]
    others = [manifest for manifest in manifests if manifest["kind"] != "Namespace"]
    assert {manifest["metadata"].get("namespace") for manifest in others} == {NAMESPACE}


def test_namespace_enforces_the_restricted_standard(named: Named) -> None:
    labels = named["Namespace"][NAMESPACE]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_replicas_are_as_promised(named: Named, overlay: str) -> None:
    counted = {name: deployment["spec"].get("replicas") for name, deployment in named["Deployment"].items()}
    for autoscaler in named.get("HorizontalPodAutoscaler", {}).values():
        assert counted[autoscaler["spec"]["scaleTargetRef"]["name"]] is None
        counted[autoscaler["spec"]["scaleTargetRef"]["name"]] = autoscaler["spec"]["minReplicas"]
    assert counted == REPLICAS[overlay]


def test_requests_and_limits_are_as_promised(named: Named, overlay: str) -> None:
    for name in SERVICES:
        (container,) = named["Deployment"][name]["spec"]["template"]["spec"]["containers"]
        promised = DETECTOR if name == "risk" else BACKEND
        if overlay != "dev":
            assert container["resources"] == promised, name
            continue
        for side in ("requests", "limits"):
            memory, cpu = _bytes_and_millicores(container["resources"][side])
            memory_full, cpu_full = _bytes_and_millicores(promised[side])
            assert (memory <= memory_full, cpu <= cpu_full) == (True, True), (name, side)


def test_every_container_has_requests_and_limits(named: Named) -> None:
    for name, pod in _pods(named).items():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            requests = _bytes_and_millicores(container["resources"]["requests"])
            limits = _bytes_and_millicores(container["resources"]["limits"])
            assert requests[0] <= limits[0], name
            assert requests[1] <= limits[1], name


def test_images_are_pinned_and_the_same_everywhere(named: Named, overlay: str) -> None:
    images = {container["image"] for pod in _pods(named).values() for container in pod["containers"]}
    (image,) = images
    if overlay == "dev":
        assert image == "execution-control-plane:dev"
    else:
        assert re.fullmatch(r"[a-z0-9.-]+/execution-control-plane@sha256:[0-9a-f]{64}", image)


def test_base_names_no_image_that_could_be_pulled_by_accident(repository: Path) -> None:
    sources = sorted((repository / "kustomize" / "base").glob("*.yaml"))
    images = [image for source in sources for image in re.findall(r"image: (\S+)", source.read_text())]
    assert len(images) == len(SERVICES) + 2
    assert set(images) == {"execution-control-plane:unreleased"}


@pytest.mark.parametrize("name", ["ingest", "fanout", "risk"])
def test_ways_in_from_outside(named: Named, overlay: str, name: str) -> None:
    spec = named["Service"][name]["spec"]
    if overlay == "dev":
        assert spec["type"] == "NodePort"
        return
    assert spec["type"] == "LoadBalancer"
    assert spec["externalTrafficPolicy"] == "Local", "or ingest counts its limits by the node's address"
    assert set(spec["loadBalancerSourceRanges"]) <= PRIVATE_NETWORKS, "the ports speak plaintext"


def test_nothing_else_is_reachable_from_outside(named: Named) -> None:
    outside = {name for name, service in named["Service"].items() if service["spec"]["type"] != "ClusterIP"}
    assert outside == {"ingest", "fanout", "risk"}


def test_ingest_lets_only_signals_in_from_outside(named: Named) -> None:
    assert [port["port"] for port in named["Service"]["ingest"]["spec"]["ports"]] == [9000]


def test_only_dev_carries_secrets(named: Named, overlay: str) -> None:
    assert bool(named.get("Secret")) == (overlay == "dev")


def test_no_secret_of_dev_is_in_another_overlay(repository: Path) -> None:
    for overlay in ("staging", "production"):
        text = (repository / "kustomize" / "overlays" / overlay / "kustomization.yaml").read_text()
        assert "secretGenerator" not in text


def test_each_secret_and_key_is_documented(named: Named, overlay: str, repository: Path) -> None:
    documented = set(SECRET_ROW.findall((repository / "docs" / "deploy-kubernetes.md").read_text()))
    hash_suffix = re.compile(r"-[a-z0-9]{10}$") if overlay == "dev" else re.compile(r"$")
    used = {
        (hash_suffix.sub("", source["secret"]["name"]), item["key"])
        for pod in _pods(named).values()
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for item in source["secret"]["items"]
    }
    assert used == documented
