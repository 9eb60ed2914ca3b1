"""How many peers there are: in all, before their login, and from each address; it knows neither sockets nor streams."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from services.ingest.domain.addresses import counted_as, is_in
from services.ingest.settings import IngestSettings

NETWORK: Final = "network"

MemberT = TypeVar("MemberT", bound=Hashable)


class Places(Generic[MemberT]):
    """The places at one way in. `refusal` names the limit as the metric of cut connections does."""

    def __init__(self, settings: IngestSettings, members_max: int, limit: str) -> None:
        """`limit` is what that of all members together is called."""
        self._settings = settings
        self._networks = settings.networks
        self._members_max = members_max
        self._limit = limit
        self._addresses: dict[MemberT, str] = {}
        self._strangers: set[MemberT] = set()
        self._by_address: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def all(self) -> list[MemberT]:
        """Everybody, in the order of coming."""
        return list(self._addresses)

    @property
    def strangers(self) -> int:
        """How many have not logged in yet."""
        return len(self._strangers)

    def refusal(self, host: str | None) -> str | None:
        """Which limit one more from `host` (None: of this machine, by a path) would exceed, if any."""
        settings = self._settings
        if host is not None:
            if self._networks and not is_in(host, self._networks):
                return NETWORK
            if self._by_address.get(counted_as(host), 0) >= settings.connections_per_address_max:
                return "address"
        if len(self._addresses) >= self._members_max:
            return self._limit
        if len(self._strangers) >= settings.unauthenticated_connections_max:
            return "unauthenticated"
        return None

    def enter(self, member: MemberT, host: str | None) -> None:
        """Takes a place, as a stranger."""
        address = "" if host is None else counted_as(host)
        self._addresses[member] = address
        self._strangers.add(member)
        self._by_address[address] = self._by_address.get(address, 0) + 1

    def logged_in(self, member: MemberT) -> None:
        """A stranger no more."""
        self._strangers.discard(member)

    def leave(self, member: MemberT) -> None:
        """Gives the place back. Safe to repeat."""
        self._strangers.discard(member)
        address = self._addresses.pop(member, None)
        if address is None:
            return
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]
