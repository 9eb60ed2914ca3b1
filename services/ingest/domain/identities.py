"""Which masters a client certificate is for, from its names alone; trust in it is TLS's affair."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_NAME: Final = re.compile(r"master-(?P<id>[1-9][0-9]{0,15})(\..*)?", re.IGNORECASE)


def masters_of(names: Iterable[str]) -> frozenset[int] | None:
    """The masters that a certificate's names stand for, or None if they stand for none and so for any.

    A name stands for a master when its first label is `master-ID`.
    """
    matches = map(_NAME.fullmatch, names)
    return frozenset(int(match["id"]) for match in matches if match is not None) or None


def names_in(certificate: Mapping[str, Any] | None) -> list[str]:
    """The DNS names of a certificate or, without any, its common name; as `ssl.SSLSocket.getpeercert` shows it."""
    if not certificate:
        return []
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    subject = [pair for relative in certificate.get("subject", ()) for pair in relative]
    return names or [value for kind, value in subject if kind == "commonName"]
