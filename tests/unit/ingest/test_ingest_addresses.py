"""Who may connect, what counts as one address, and which masters a certificate names."""

from __future__ import annotations

import pytest

from services.ingest.domain.addresses import (
    NETWORKS_MAX,
    counted_as,
    host_of_grpc_peer,
    is_in,
    parse_networks,
)
from services.ingest.domain.identities import masters_of, names_in

NETWORKS = parse_networks(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("10.255.0.1", True),
        ("11.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8:1::5", True),
        ("2001:db9::5", False),
        # An IPv4 client of a socket that listens on both.
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.1.2.3", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_is_allowed_if_one_of_the_networks_has_it(host: str, allowed: bool):
    assert is_in(host, NETWORKS) is allowed


@pytest.mark.parametrize("text", ["::ffff:10.0.0.0/104", "::ffff:a00:0/104"])
def test_a_network_of_ipv4_may_be_written_as_ipv6_has_it(text: str):
    networks = parse_networks([text, "::ffff:192.0.2.7"])
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7"):
        assert is_in(host, networks)
    for host in ("11.1.2.3", "::ffff:11.1.2.3", "192.0.2.8", "::1"):
        assert not is_in(host, networks)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "example.com", "", "2001:db8::1/32"])
def test_what_is_no_network_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  (each says something else)
        parse_networks([text])


def test_networks_are_bounded():
    with pytest.raises(ValueError, match="at most"):
        parse_networks(["10.0.0.1"] * (NETWORKS_MAX + 1))


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_ipv6_address_counts_as_its_network(host: str, counted: str):
    assert counted_as(host) == counted


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:50123", "10.0.0.1"),
        ("ipv6:%5B::1%5D:50123", "::1"),
        ("ipv6:[2001:db8::5]:50123", "2001:db8::5"),
        ("unix:/run/x.sock", None),
    ],
)
def test_the_address_in_what_grpc_calls_a_peer(peer: str, host: str | None):
    assert host_of_grpc_peer(peer) == host


@pytest.mark.parametrize(
    ("names", "masters"),
    [
        (["master-42"], {42}),
        (["MASTER-42.masters.example.com", "master-7", "bridge.example.com"], {7, 42}),
        (["bridge.example.com"], None),
        (["master-0", "master-", "master-042", "master-4x", "xmaster-4", "master-12345678901234567"], None),
        ([], None),
    ],
)
def test_a_name_stands_for_a_master_by_its_first_label(names: list[str], masters: set[int] | None):
    assert masters_of(names) == masters


def test_the_common_name_counts_only_without_dns_names():
    subject = ((("organizationName", "x"),), (("commonName", "master-5"),))
    assert names_in({"subject": subject}) == ["master-5"]
    assert names_in({"subject": subject, "subjectAltName": (("IP Address", "10.0.0.1"),)}) == ["master-5"]
    assert names_in({"subject": subject, "subjectAltName": (("DNS", "bridge"),)}) == ["bridge"]
    assert names_in(None) == []
