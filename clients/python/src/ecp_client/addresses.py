"""Network addresses as settings name them. Pure."""

from __future__ import annotations

from ecp_client.errors import SettingsError


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6 address]:port`.

    Raises:
        SettingsError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise SettingsError(f"{address!r} is not an address; write host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise SettingsError(f"{address!r}: write an IPv6 address in brackets, as [::1]:9000")
    return host, int(port)
