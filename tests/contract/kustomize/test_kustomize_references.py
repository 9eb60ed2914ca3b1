"""Names that point at something: selectors, ports, settings, secrets, peers, and what the migrations need."""

from __future__ import annotations

import base64
from pathlib import PurePosixPath
from typing import Any

Manifest = dict[str, Any]
Named = dict[str, dict[str, Manifest]]

MIGRATION = ("app.kubernetes.io/component", "migration")


def _workloads(named: Named) -> dict[str, Manifest]:
    return named["Deployment"] | named["Job"]


def _containers(named: Named) -> list[tuple[str, Manifest, Manifest]]:
    """Workload's name, its pod and one of its containers, for all of them."""
    pods = {name: workload["spec"]["template"]["spec"] for name, workload in _workloads(named).items()}
    return [(name, pod, container) for name, pod in pods.items() for container in pod["containers"]]


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def _secret_paths(pod: Manifest, container: Manifest) -> set[str]:
    """The path of each secret file that the container sees."""
    mounts = {mount["name"]: PurePosixPath(mount["mountPath"]) for mount in container["volumeMounts"]}
    return {
        str(mounts[volume["name"]] / item["path"])
        for volume in pod["volumes"]
        if "projected" in volume
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def test_deployments_select_their_own_pods_only(named: Named) -> None:
    pods = {
        name: workload["spec"]["template"]["metadata"]["labels"]
        for name, workload in _workloads(named).items()
    }
    for name, deployment in named["Deployment"].items():
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert [pod for pod, labels in pods.items() if _matches(selector, labels)] == [name]


def test_services_select_one_deployment_and_name_its_ports(named: Named) -> None:
    pods = {
        name: workload["spec"]["template"]["metadata"]["labels"]
        for name, workload in _workloads(named).items()
    }
    for name, service in named["Service"].items():
        selected = [pod for pod, labels in pods.items() if _matches(service["spec"]["selector"], labels)]
        assert selected == [name.removesuffix("-headless")]
        (container,) = named["Deployment"][selected[0]]["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_each_deployment_has_a_service_and_a_headless_one(named: Named) -> None:
    for name in named["Deployment"]:
        assert named["Service"][name]["spec"].get("clusterIP") is None
        headless = named["Service"][f"{name}-headless"]["spec"]
        assert headless["clusterIP"] == "None"
        assert {port["name"] for port in headless["ports"]} == {"grpc", "admin"}


def test_every_settings_source_exists(named: Named) -> None:
    for name, _, container in _containers(named):
        for source in container.get("envFrom", []):
            assert source["configMapRef"]["name"] in named["ConfigMap"], name
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("configMapKeyRef")
            assert reference is None or reference["key"] in named["ConfigMap"][reference["name"]]["data"], (
                name
            )


def test_no_settings_source_is_left_unused(named: Named) -> None:
    used = {
        source["configMapRef"]["name"]
        for _, _, container in _containers(named)
        for source in container.get("envFrom", [])
    }
    assert used == set(named["ConfigMap"])


def test_no_variable_is_set_twice(named: Named) -> None:
    for name, _, container in _containers(named):
        variables = [variable["name"] for variable in container.get("env", [])]
        for source in container.get("envFrom", []):
            variables += named["ConfigMap"][source["configMapRef"]["name"]]["data"]
        assert len(variables) == len(set(variables)), name


def test_secrets_reach_containers_as_files_only(named: Named) -> None:
    for name, pod, container in _containers(named):
        for variable in container["env"]:
            assert variable["name"].endswith("_FILE"), name
        assert not any("secretRef" in source for source in container.get("envFrom", [])), name
        named_files = {variable["value"] for variable in container["env"]}
        assert named_files == _secret_paths(pod, container), name


def test_secret_files_are_for_the_service_and_nobody_else(named: Named) -> None:
    for name, pod, container in _containers(named):
        (volume,) = [volume for volume in pod["volumes"] if "projected" in volume]
        assert volume["projected"]["defaultMode"] == 0o440, name
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"], name
        (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        assert mount["readOnly"] is True, name


def test_every_secret_of_dev_resolves_to_a_key_with_a_value(named: Named, overlay: str) -> None:
    secrets = named.get("Secret", {})
    sources = [
        source["secret"]
        for _, pod, _ in _containers(named)
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    assert sources
    if overlay != "dev":
        return
    for source in sources:
        for item in source["items"]:
            assert base64.b64decode(secrets[source["name"]]["data"][item["key"]])
    assert {source["name"] for source in sources} == set(secrets)


def test_peers_are_reached_by_their_headless_names(named: Named) -> None:
    addresses = [
        value
        for settings in named["ConfigMap"].values()
        for key, value in settings["data"].items()
        if key.endswith("_ADDRESS") and not key.endswith("BIND_ADDRESS")
    ]
    assert addresses
    for address in addresses:
        host, _, port = address.rpartition(":")
        service = named["Service"][host]["spec"]
        assert service["clusterIP"] == "None", f"{address}: a client could not balance over the pods"
        assert int(port) in {entry["port"] for entry in service["ports"] if entry["name"] == "grpc"}


def test_the_migration_label_selects_all_that_the_jobs_need(named: Named) -> None:
    label, value = MIGRATION
    for job in named["Job"].values():
        pod = job["spec"]["template"]["spec"]
        needed = [job, named["ServiceAccount"][pod["serviceAccountName"]]]
        for container in pod["containers"]:
            needed += [
                named["ConfigMap"][source["configMapRef"]["name"]] for source in container.get("envFrom", [])
            ]
        for volume in pod["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                needed += [
                    secret
                    for name, secret in named.get("Secret", {}).items()
                    if name == source["secret"]["name"]
                ]
        assert {manifest["metadata"]["labels"].get(label) for manifest in needed} == {value}
    for deployment in named["Deployment"].values():
        assert deployment["metadata"]["labels"][label] != value
