"""Who may connect to whom by network policies, read as Kubernetes reads them; it knows only what our policies use."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]
Named = dict[str, dict[str, Manifest]]

OURS = "execution-control"


@dataclass(frozen=True)
class End:
    """A pod, by its namespace and labels, or an address outside the cluster."""

    name: str
    namespace: str | None = None
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    address: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether policies of our namespace can bind it."""
        return self.namespace == OURS


@dataclass(frozen=True, order=True)
class Flow:
    """A connection that somebody opens."""

    source: str
    target: str
    protocol: str
    port: int


def allowed(policies: Iterable[Manifest], source: End, target: End, protocol: str, port: int) -> bool:
    """Whether both sides let the connection be opened."""
    policies = list(policies)
    return _lets(policies, source, "Egress", target, protocol, port) and _lets(
        policies, target, "Ingress", source, protocol, port
    )


def _lets(policies: list[Manifest], end: End, side: str, other: End, protocol: str, port: int) -> bool:
    if not end.is_ours:
        return True
    binding = [
        policy["spec"]
        for policy in policies
        if side in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], end.labels)
    ]
    rules = [rule for spec in binding for rule in spec.get(side.lower(), ())]
    return not binding or any(_matches(rule, side, other, protocol, port) for rule in rules)


def _matches(rule: Manifest, side: str, other: End, protocol: str, port: int) -> bool:
    peers = rule.get("to" if side == "Egress" else "from")
    ports = rule.get("ports")
    return (peers is None or any(_is_peer(peer, other) for peer in peers)) and (
        ports is None or {"protocol": protocol, "port": port} in ports
    )


def _is_peer(peer: Manifest, end: End) -> bool:
    if "ipBlock" in peer:
        assert set(peer) == {"ipBlock"}
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return end.address is not None and ipaddress.ip_address(end.address) in network
    if end.namespace is None or not _selects(peer.get("podSelector", {}), end.labels):
        return False
    if "namespaceSelector" in peer:
        return _selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": end.namespace})
    return end.is_ours


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "not known here"
    return selector.get("matchLabels", {}).items() <= labels.items()
