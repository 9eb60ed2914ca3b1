"""One connection to Redis for the hot path: RESP by hiredis, answers to callbacks in order; it knows no log."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
from redis.asyncio.connection import SSLConnection

from services.common.errors import UnavailableError
from services.common.redis_location import Location, LocationError, Place, is_primary

Reply = Any
"""What Redis answered: bytes, an int, None, a list of these, or a hiredis.ReplyError."""
Argument = Any
"""bytes, str or int; hiredis packs them."""
_WRITE_HIGH_BYTES: Final = 1 << 20


class RespConnection(asyncio.Protocol):
    """Sends commands and gives each answer to its callback, in the order of sending.

    When the connection ends, `on_lost` is called once and callbacks without an answer are called with the error.
    """

    def __init__(self, on_lost: Callable[[Exception], None]) -> None:
        self._on_lost = on_lost
        self._reader = hiredis.Reader()
        self._callbacks: deque[Callable[[Reply], None]] = deque()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        # uvloop's transports are no subclasses of it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hands out the answers that are complete."""
        reader, callbacks = self._reader, self._callbacks
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not False and self._transport is not None:
                callbacks.popleft()(reply)
                reply = reader.gets()
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(UnavailableError(f"the log answers nonsense: {error}", reason="REDIS_UNREACHABLE"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells everybody who waits."""
        self.abort(exc or ConnectionError("Redis closed the connection"))

    def send(self, arguments: tuple[Argument, ...], then: Callable[[Reply], None]) -> None:
        """Sends one command; `then` gets its answer."""
        assert self._transport is not None
        self._callbacks.append(then)
        self._transport.write(hiredis.pack_command(arguments))

    async def call(self, *arguments: Argument, timeout_seconds: float) -> Reply:
        """Sends one command and waits for its answer, outside of the hot path.

        Raises:
            UnavailableError: the connection ended, or no answer in time.
            hiredis.ReplyError: Redis refused the command.
        """
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def then(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        self.send(arguments, then)
        try:
            async with asyncio.timeout(timeout_seconds):
                reply = await answered
        except TimeoutError as error:
            raise UnavailableError("the log does not answer in time", reason="REDIS_TIMEOUT") from error
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        if isinstance(reply, Exception):
            raise UnavailableError(f"the log went away: {reply}", reason="REDIS_UNREACHABLE") from reply
        return reply

    def abort(self, error: Exception) -> None:
        """Ends the connection at once."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.abort()
        callbacks, self._callbacks = self._callbacks, deque()
        self._on_lost(error)
        for callback in callbacks:
            callback(error)


class Endpoint:
    """Where a key lies and how to get in, from any REDIS_URL that `services.common.redis_location` knows."""

    def __init__(self, url: str, key: str) -> None:
        """
        Raises:
            ConfigurationError: it is no such URL. The message does not hold the URL, which may hold a password.
        """
        location = Location.parse(url)
        self._options = location.options
        self._locator = location.locator(key)

    async def connect(self, on_lost: Callable[[Exception], None], timeout_seconds: float) -> RespConnection:
        """Connects, authenticates and selects the database.

        Raises:
            UnavailableError: it cannot be reached or refuses us.
        """
        loop, options = asyncio.get_running_loop(), self._options
        try:
            async with asyncio.timeout(timeout_seconds):
                place = await self._place()
                if "path" in options:
                    _, connection = await loop.create_unix_connection(
                        lambda: RespConnection(on_lost), options["path"]
                    )
                else:
                    _, connection = await loop.create_connection(
                        lambda: RespConnection(on_lost), place.host, place.port, ssl=self._ssl_context()
                    )
        except LocationError as error:
            raise UnavailableError(f"the log cannot be found: {error}", reason="REDIS_UNREACHABLE") from error
        except (OSError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            raise UnavailableError(f"the log cannot be reached: {why}", reason="REDIS_UNREACHABLE") from error
        try:
            await self._enter(connection, timeout_seconds)
        except hiredis.ReplyError as error:
            connection.abort(error)
            raise UnavailableError(f"the log refuses us: {error}", reason="REDIS_REFUSED") from error
        except BaseException as error:
            connection.abort(ConnectionError(str(error)))
            raise
        return connection

    async def _place(self) -> Place:
        if self._locator is None:
            return Place(self._options.get("host", "localhost"), self._options.get("port", 6379))
        return await self._locator.locate()

    async def _enter(self, connection: RespConnection, timeout_seconds: float) -> None:
        options = self._options
        if options.get("password"):
            words = [options["username"]] if options.get("username") else []
            await connection.call("AUTH", *words, options["password"], timeout_seconds=timeout_seconds)
        if options.get("db"):
            await connection.call("SELECT", int(options["db"]), timeout_seconds=timeout_seconds)
        if self._locator is not None and self._locator.is_sentinel:
            role = await connection.call("ROLE", timeout_seconds=timeout_seconds)
            if not is_primary(role):
                raise UnavailableError(
                    "the server that Sentinel named is no primary (yet)", reason="REDIS_FAILING_OVER"
                )

    def _ssl_context(self) -> ssl.SSLContext | None:
        options = self._options
        if options.get("connection_class") is not SSLConnection:
            return None
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_cert_reqs") in ("none", ssl.CERT_NONE):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif str(options.get("ssl_check_hostname", "true")).lower() in ("false", "0", "no"):
            context.check_hostname = False
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        return context
