"""Network addresses and license tokens as settings name them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ecp_client.errors import SettingsError

_TOKEN = re.compile(r"[!-~]+")


def check_addresses(name: str, addresses: Sequence[str]) -> None:
    """Does nothing if all are `host:port`; `name` is the setting's. Raises SettingsError."""
    if isinstance(addresses, str):
        raise SettingsError(f"{name} must be a list of host:port, not one string")
    for address in addresses:
        parse_address(address)


def check_license_token(token: str) -> None:
    """Does nothing if this may be a token: a line end, as of the file that it came from, is of none.

    Raises:
        SettingsError: it is empty, or has blanks or other characters that cannot be sent.
    """
    if not _TOKEN.fullmatch(token):
        raise SettingsError("license_token must be printable ASCII without blanks and line ends")


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
