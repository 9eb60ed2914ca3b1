"""Which addresses may connect, and what counts as one of them: pure, it resolves no names."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

NETWORKS_MAX: Final = 1_024
# Whoever rents one host is given that many addresses of IPv6; counting them one by one would limit nobody.
_IPV6_PREFIX_BITS: Final = 64
_IPV4_MAPPED_PREFIX_BITS: Final = 96

Network = IPv4Network | IPv6Network


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks from `10.0.0.0/8`, `2001:db8::/32` or single addresses.

    Raises:
        ValueError: one is none, has bits behind its prefix, or there are too many.
    """
    networks = tuple(_network(text) for text in texts)
    if len(networks) > NETWORKS_MAX:
        raise ValueError(f"at most {NETWORKS_MAX} networks are taken")
    return networks


def _network(text: str) -> Network:
    """A network; one of IPv4 also where it is written as IPv6 has it, as `::ffff:10.0.0.0/104`."""
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _IPV4_MAPPED_PREFIX_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _IPV4_MAPPED_PREFIX_BITS))
    return network


def address_of(host: str) -> IPv4Address | IPv6Address:
    """The address that a socket names, an IPv4 one also where it came in through an IPv6 socket.

    Raises:
        ValueError: it is not an address.
    """
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def counted_as(host: str) -> str:
    """What connections from `host` are counted under: the address, or of IPv6 the network of one customer."""
    address = address_of(host)
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((address, _IPV6_PREFIX_BITS), strict=False))


def is_in(host: str, networks: tuple[Network, ...]) -> bool:
    """Whether `host` is in one of the networks."""
    address = address_of(host)
    return any(address in network for network in networks)


def host_of_grpc_peer(peer: str) -> str | None:
    """The address in gRPC's `ipv4:10.0.0.1:50123` or `ipv6:%5B::1%5D:50123`; None for a Unix socket."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").replace("%25", "%")
    return host.strip("[]")
