"""Where Redis is: reads REDIS_URL and finds the server that holds a key, in a cluster or behind Sentinel; no payloads.

    redis://  rediss://  unix://                                          one server
    redis+sentinel://[user:password@]host[:port],…/name[/database]        the primary that Sentinel names
    redis+cluster://[user:password@]host[:port],…                         the owner of a key's slot

`rediss+…` is the same over TLS. Sentinels that ask for a password get `?sentinel_password=` (and `sentinel_username=`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis.exceptions
from redis.asyncio.connection import Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from services.common.errors import ConfigurationError

_SENTINEL_PORT: Final = 26_379
_REDIS_PORT: Final = 6_379
_SEEDS_MAX: Final = 32
_NODES_MAX: Final = 256
_ASK_SECONDS: Final = 1.0
"""How long one sentinel or node may take to tell where the server is, before another is asked."""


class LocationError(redis.exceptions.ConnectionError):
    """Nobody who was asked could tell where the server is."""


class Place(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Locator(Protocol):
    """Finds the server for one key; what it finds may be another one each time."""

    is_sentinel: bool
    """Whether what it found must be asked if it still is the primary."""

    async def locate(self) -> Place:
        """Where the server is now.

        Raises:
            LocationError: nobody could tell.
        """


@dataclass(frozen=True, slots=True)
class Location:
    """What REDIS_URL says."""

    kind: Literal["single", "sentinel", "cluster"]
    options: Mapping[str, Any]
    """What redis-py's connections take; host and port only for a single server."""
    seeds: tuple[Place, ...] = ()
    """Whom to ask: sentinels, or nodes of the cluster."""
    service: str = ""
    """The name under which Sentinel knows the primary."""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Location:
        """Reads a REDIS_URL.

        Raises:
            ConfigurationError: it is none. The message does not hold the URL, which may hold a password.
        """
        try:
            return _parse(url)
        except (ValueError, LookupError):
            raise ConfigurationError(
                "is not a redis://, rediss:// or unix:// URL, nor one of redis+sentinel:// or redis+cluster://",
                where="REDIS_URL",
                do="for example redis://127.0.0.1:6379/0",
            ) from None

    def locator(self, key: str) -> Locator | None:
        """What finds the server that holds the key; None for a single server, which `options` tell."""
        match self.kind:
            case "sentinel":
                return _SentinelLocator(self)
            case "cluster":
                return _ClusterLocator(self, key_slot(key.encode()))
            case _:
                return None

    @property
    def is_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.options.get("connection_class") is SSLConnection


def _parse(url: str) -> Location:
    scheme, separator, rest = url.partition("://")
    transport, plus, kind = scheme.partition("+")
    if not plus:
        return Location("single", dict(parse_url(url)))
    if transport not in ("redis", "rediss") or kind not in ("sentinel", "cluster") or not separator:
        raise ValueError(scheme)
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    # With a host of its own: a list of hosts with an IPv6 address in it is none to newer Pythons.
    parts = urlsplit(f"//host{rest[len(netloc) :]}")
    credentials, at, hosts = netloc.rpartition("@")
    default_port = _SENTINEL_PORT if kind == "sentinel" else _REDIS_PORT
    seeds = tuple(_place(host, default_port) for host in hosts.split(","))[:_SEEDS_MAX]
    query = dict(parse_qsl(parts.query))
    sentinel = {
        name.removeprefix("sentinel_"): query.pop(name)
        for name in ("sentinel_username", "sentinel_password")
        if name in query
    }
    path = [word for word in parts.path.split("/") if word]
    service = path.pop(0) if kind == "sentinel" else ""
    if len(path) > (1 if kind == "sentinel" else 0):
        raise ValueError("path")
    database = int(path[0]) if path else 0
    options = dict(
        parse_url(f"{transport}://{credentials}{at}{_text(seeds[0])}/{database}?{urlencode(query)}")
    )
    for name in ("host", "port"):
        options.pop(name, None)
    shared = {
        name: value for name, value in options.items() if name.startswith("ssl") or name == "connection_class"
    }
    return Location(
        "sentinel" if kind == "sentinel" else "cluster",
        options,
        seeds,
        service,
        {**shared, **sentinel},
    )


def _place(text: str, default_port: int) -> Place:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("host")
    return Place(parts.hostname, parts.port or default_port)


def _text(place: Place) -> str:
    return f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"


class _SentinelLocator:
    """Asks the sentinels in turn."""

    is_sentinel = True

    def __init__(self, location: Location) -> None:
        self._location = location
        self._seeds = list(location.seeds)

    async def locate(self) -> Place:
        """See Locator."""
        options, name = self._location.sentinel_options, self._location.service
        for seed in tuple(self._seeds):
            # The next time somebody else is asked first: this one may be cut off from the others, or hang.
            self._seeds.append(self._seeds.pop(0))
            answer = await _ask(seed, options, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            if isinstance(answer, list) and len(answer) == 2:
                return Place(answer[0].decode(), int(answer[1]))
        raise LocationError("no sentinel names the primary")


class _ClusterLocator:
    """Asks the nodes in turn who owns the slot: the named ones, and those that they told of."""

    is_sentinel = False

    def __init__(self, location: Location, slot: int) -> None:
        self._location = location
        self._slot = slot
        self._nodes = list(location.seeds)

    async def locate(self) -> Place:
        """See Locator."""
        options = {name: value for name, value in self._location.options.items() if name != "db"}
        for node in tuple(self._nodes):
            self._nodes.append(self._nodes.pop(0))
            answer = await _ask(node, options, "CLUSTER", "SLOTS")
            if isinstance(answer, list):
                self._learn(node, answer)
                for first, last, primary, *_ in answer:
                    if first <= self._slot <= last:
                        return _node(primary, node)
        raise LocationError(f"no node of the cluster names an owner of slot {self._slot}")

    def _learn(self, asked: Place, ranges: Sequence[Sequence[Any]]) -> None:
        """Keeps the nodes that the cluster has now, behind those that were named: seeds may all be replaced."""
        found = [_node(one, asked) for _, _, *nodes in ranges for one in nodes]
        fresh = [one for one in dict.fromkeys(found) if one not in self._location.seeds]
        kept = [one for one in self._nodes if one in self._location.seeds]
        self._nodes = [*kept, *fresh][:_NODES_MAX]


def _node(answer: Sequence[Any], asked: Place) -> Place:
    # Without a known address the node means the one that was used to ask it.
    host = answer[0].decode() if answer[0] else ""
    return Place(asked.host if host in ("", "?") else host, int(answer[1]))


async def _ask(place: Place, options: Mapping[str, Any], *command: str) -> Any:
    """What one server answers, raw; None when it does not."""
    kind: type[Connection] = options.get("connection_class") or Connection
    rest = {name: value for name, value in options.items() if name != "connection_class"}
    connection = kind(
        host=place.host,
        port=place.port,
        **{
            **rest,
            "socket_timeout": _ASK_SECONDS,
            "socket_connect_timeout": _ASK_SECONDS,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    try:
        async with asyncio.timeout(2 * _ASK_SECONDS):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py has no annotation here
            await connection.send_command(*command)
            return await connection.read_response()
    except (redis.exceptions.RedisError, OSError, TimeoutError, RuntimeError):
        # RuntimeError is uvloop's word for a write to a connection that was reset since.
        return None
    finally:
        await connection.disconnect(nowait=True)


class LocatedConnection(Connection):
    """A connection that looks each time where its server is, and goes when that server is no longer the right one."""

    def __init__(self, *, locator: Locator, **options: Any) -> None:
        self._locator = locator
        super().__init__(**options)

    async def _connect(self) -> None:
        async with asyncio.timeout(self.socket_connect_timeout):
            self.host, self.port = await self._locator.locate()
        await super()._connect()  # type: ignore[no-untyped-call]  # redis-py has no annotation here

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As of any connection; behind Sentinel it also sees that the server is the primary."""
        await super().on_connect_check_health(check_health=check_health)
        if self._locator.is_sentinel:
            await self.send_command("ROLE")
            role = await self.read_response()
            if not is_primary(role):
                raise redis.exceptions.ReadOnlyError("the server that Sentinel named is no primary (yet)")

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """As of any connection; what says that the server is the wrong one also ends the connection."""
        try:
            return await super().read_response(*arguments, **options)
        except (
            redis.exceptions.ReadOnlyError,
            redis.exceptions.AskError,
            redis.exceptions.ClusterDownError,
        ):
            await self.disconnect(nowait=True)
            raise


class LocatedSslConnection(LocatedConnection, SSLConnection):
    """The same, encrypted."""


def is_primary(role: object) -> bool:
    """Whether the answer to ROLE is a primary's."""
    return isinstance(role, list) and bool(role) and role[0] in (b"master", b"primary")
