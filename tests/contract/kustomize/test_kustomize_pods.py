"""How each pod starts, is watched, is stopped, is placed and is locked up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]
Named = dict[str, dict[str, Manifest]]

SERVICES = {"ingest", "fanout", "ledger", "risk"}
SLACK_SECONDS_MIN = 10.0
"""Between the end of the drain and the kill: what a service takes at most to close its pools and leave."""


def _workloads(named: Named) -> dict[str, Manifest]:
    return named["Deployment"] | named["Job"]


def _services(named: Named) -> dict[str, tuple[Manifest, Manifest]]:
    """Each service's pod and its one container."""
    assert set(named["Deployment"]) == SERVICES
    pods = {name: deployment["spec"]["template"]["spec"] for name, deployment in named["Deployment"].items()}
    return {name: (pod, pod["containers"][0]) for name, pod in pods.items()}


def _settings(named: Named, container: Manifest) -> dict[str, str]:
    values: dict[str, str] = {}
    for source in container["envFrom"]:
        values |= named["ConfigMap"][source["configMapRef"]["name"]]["data"]
    return values


def _proto_services(repository: Path, name: str) -> set[str]:
    found = set()
    for path in (repository / "protos" / "execution" / name / "v1").glob("*.proto"):
        text = path.read_text()
        (package,) = re.findall(r"^package (\S+);", text, re.MULTILINE)
        found |= {f"{package}.{service}" for service in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return found


def test_each_deployment_runs_its_own_module(named: Named) -> None:
    for name, (_, container) in _services(named).items():
        assert container["command"] == ["python", "-m", f"services.{name}"]


def test_liveness_and_startup_ask_for_the_process(named: Named) -> None:
    for name, (_, container) in _services(named).items():
        assert container["livenessProbe"]["grpc"]["service"] == "", name
        assert container["startupProbe"]["grpc"]["service"] == "", name


def test_readiness_asks_for_a_service_that_the_contracts_define(named: Named, repository: Path) -> None:
    for name, (_, container) in _services(named).items():
        assert container["readinessProbe"]["grpc"]["service"] in _proto_services(repository, name)


def test_probes_use_the_port_that_the_service_binds(named: Named) -> None:
    for name, (_, container) in _services(named).items():
        bound = int(_settings(named, container)["GRPC_BIND_ADDRESS"].rpartition(":")[2])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["grpc"]["port"] == bound, (name, probe)
            assert container[probe]["timeoutSeconds"] <= container[probe]["periodSeconds"], (name, probe)


def test_container_ports_are_the_bound_ones(named: Named) -> None:
    variables = {"grpc": "GRPC_BIND_ADDRESS", "admin": "ADMIN_BIND_ADDRESS", "signals": "BIND_ADDRESS"}
    for name, (_, container) in _services(named).items():
        settings = _settings(named, container)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert set(ports) == ({"signals", "grpc", "admin"} if name == "ingest" else {"grpc", "admin"})
        assert ports == {port: int(settings[variables[port]].rpartition(":")[2]) for port in ports}


def test_pre_stop_and_drain_end_before_the_kill(named: Named) -> None:
    for name, (pod, container) in _services(named).items():
        pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = float(_settings(named, container)["DRAIN_GRACE_SECONDS"])
        assert pre_stop > 0, name
        assert drain > 0, name
        assert pre_stop + drain + SLACK_SECONDS_MIN <= pod["terminationGracePeriodSeconds"], name


def test_a_rollout_never_takes_a_pod_away_first(named: Named) -> None:
    for deployment in named["Deployment"].values():
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_replicas_spread_over_nodes_and_zones(named: Named) -> None:
    for name, (pod, _) in _services(named).items():
        spread = {constraint["topologyKey"]: constraint for constraint in pod["topologySpreadConstraints"]}
        assert set(spread) == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        for constraint in spread.values():
            assert constraint["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}


def test_pods_are_restricted(named: Named) -> None:
    for name, workload in _workloads(named).items():
        pod = workload["spec"]["template"]["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["runAsUser"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_pods_get_nothing_from_the_cluster_that_they_did_not_ask_for(named: Named) -> None:
    accounts = named["ServiceAccount"]
    for name, workload in _workloads(named).items():
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, "or LEDGER_PORT=tcp://… appears among the settings"
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False, name


def test_writable_space_is_bounded(named: Named) -> None:
    for name, workload in _workloads(named).items():
        for volume in workload["spec"]["template"]["spec"]["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], name


def test_jobs_end(named: Named) -> None:
    for job in named["Job"].values():
        assert job["spec"]["backoffLimit"] <= 10
        assert job["spec"]["activeDeadlineSeconds"] <= 3_600
        assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
