"""The flows that the policies allow against those that settings, secrets and ways in ask for: these and no other."""

from __future__ import annotations

import base64
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.contract.kustomize.flows import OURS, End, Flow, Manifest, Named, allowed

PRIVATE = End("a private address", address="10.1.2.3")
OUTSIDE = [
    PRIVATE,
    End("a public address", address="203.0.113.5"),
    End("dns", "kube-system", {"k8s-app": "kube-dns"}),
    End("node-local dns", address="169.254.20.10"),
    End("prometheus", "monitoring", {"app": "prometheus"}),
    End("a pod elsewhere", "default", {"app.kubernetes.io/name": "fanout"}),
]
NEWCOMER = End("a pod that somebody put here", OURS, {"app": "new"})
DNS = [("UDP", 53), ("TCP", 53)]
OTHER_PORTS = [("TCP", 443), ("TCP", 50052), ("UDP", 9000)]


@pytest.fixture(params=["staging", "production"])
def overlay(request: pytest.FixtureRequest) -> str:
    """The overlays with policies: dev's data servers are pods of its namespace, of which nothing is known here."""
    return str(request.param)


@pytest.fixture
def data_ports(render: Callable[[str], list[Manifest]]) -> dict[str, int]:
    """The usual port of what each URL's variable names, by dev's secrets."""
    urls = {}
    for manifest in render("dev"):
        if manifest["kind"] == "Secret" and "url" in manifest["data"]:
            url = urlsplit(base64.b64decode(manifest["data"]["url"]).decode())
            urls[url.scheme] = url.port
    return {
        "REDIS_URL_FILE": urls["redis"],
        "DATABASE_URL_FILE": urls["postgresql"],
        "MIGRATION_DATABASE_URL_FILE": urls["postgresql"],
    }


def _pods(named: Named) -> dict[str, End]:
    workloads = named["Deployment"] | named["Job"]
    return {
        name: End(name, OURS, workload["spec"]["template"]["metadata"]["labels"])
        for name, workload in workloads.items()
    }


def _settings(named: Named, workload: Manifest) -> dict[str, str]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    for source in container.get("envFrom", ()):
        values |= named["ConfigMap"][source["configMapRef"]["name"]]["data"]
    return values


def _target(named: Named, service: str, port: int) -> tuple[str, int]:
    """The Deployment behind a Service, and its container's port."""
    spec = named["Service"][service]["spec"]
    name = spec["selector"]["app.kubernetes.io/name"]
    (entry,) = [entry for entry in spec["ports"] if entry["port"] == port]
    (container,) = named["Deployment"][name]["spec"]["template"]["spec"]["containers"]
    (number,) = [one["containerPort"] for one in container["ports"] if one["name"] == entry["targetPort"]]
    return name, number


def _wanted(named: Named, data_ports: dict[str, int]) -> set[Flow]:
    flows = set()
    for name, workload in (named["Deployment"] | named["Job"]).items():
        settings = _settings(named, workload)
        for resolver in ("dns", "node-local dns"):
            flows |= {Flow(name, resolver, protocol, port) for protocol, port in DNS}
        for variable, value in settings.items():
            if variable in data_ports:
                flows.add(Flow(name, PRIVATE.name, "TCP", data_ports[variable]))
            elif variable == "ADMIN_BIND_ADDRESS":
                flows.add(Flow("prometheus", name, "TCP", int(value.rpartition(":")[2])))
            elif variable.endswith("_ADDRESS") and not variable.endswith("BIND_ADDRESS"):
                host, _, port = value.rpartition(":")
                target, number = _target(named, host, int(port))
                flows.add(Flow(name, target, "TCP", number))
    for name, service in named["Service"].items():
        if service["spec"]["type"] == "LoadBalancer":
            for entry in service["spec"]["ports"]:
                target, number = _target(named, name, entry["port"])
                flows.add(Flow(PRIVATE.name, target, "TCP", number))
    return flows


def _found(named: Named, ports: set[tuple[str, int]], *, without: str | None = None) -> set[Flow]:
    """Of all connections between all ends those that the policies allow."""
    policies = [policy for name, policy in named["NetworkPolicy"].items() if name != without]
    ends = [*_pods(named).values(), *OUTSIDE, NEWCOMER]
    return {
        Flow(source.name, target.name, protocol, port)
        for source in ends
        for target in ends
        for protocol, port in ports
        if source is not target and (source.is_ours or target.is_ours)
        if allowed(policies, source, target, protocol, port)
    }


def _ports(flows: set[Flow]) -> set[tuple[str, int]]:
    return {(flow.protocol, flow.port) for flow in flows} | set(OTHER_PORTS)


def test_exactly_what_the_settings_name_is_allowed(named: Named, data_ports: dict[str, int]) -> None:
    wanted = _wanted(named, data_ports)
    found = _found(named, _ports(wanted))
    assert sorted(wanted - found) == [], "not allowed"
    assert sorted(found - wanted) == [], "allowed for nothing"


def test_every_served_port_is_reached_by_somebody(named: Named, data_ports: dict[str, int]) -> None:
    served = {
        (name, port["containerPort"])
        for name, deployment in named["Deployment"].items()
        for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    reached = {(flow.target, flow.port) for flow in _wanted(named, data_ports)}
    assert served == {one for one in reached if one[0] in named["Deployment"]}


def test_without_any_of_the_policies_something_is_noticed(named: Named, data_ports: dict[str, int]) -> None:
    wanted = _wanted(named, data_ports)
    for name in named["NetworkPolicy"]:
        assert _found(named, _ports(wanted), without=name) != wanted, name


def test_a_peer_that_no_policy_knows_is_noticed(named: Named, data_ports: dict[str, int]) -> None:
    settings = next(data for name, data in named["ConfigMap"].items() if name.startswith("ingest-settings"))
    settings["data"]["RISK_ADDRESS"] = "risk-headless:50051"
    wanted = _wanted(named, data_ports)
    assert wanted - _found(named, _ports(wanted)) == {Flow("ingest", "risk", "TCP", 50051)}


@pytest.mark.parametrize("name", ["ingest", "fanout", "risk"])
def test_policies_and_load_balancers_let_in_the_same_networks(named: Named, name: str) -> None:
    blocks = {
        peer["ipBlock"]["cidr"]
        for rule in named["NetworkPolicy"][name]["spec"]["ingress"]
        for peer in rule["from"]
        if "ipBlock" in peer
    }
    assert blocks == set(named["Service"][name]["spec"]["loadBalancerSourceRanges"])


def test_what_the_migrations_need_is_applied_with_them(named: Named) -> None:
    for name in ("allow-dns", "migrations"):
        labels = named["NetworkPolicy"][name]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == "migration"
