"""A connection that waits for a stream's next entries at little cost; it interprets no payload and loses no entry.

redis-py spends 150 us of processor time on a read, more than all else that a lone signal costs the fan-out. So it makes
the connection, wherever the server is, and what comes over it is read here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
import redis.exceptions

from services.common import stream
from services.common.stream import Entry, EntryId, Redis

_XREAD: Final = b"XREAD"


class _Replies(asyncio.Protocol):
    """Takes the place of redis-py's own protocol on a connection: one reply for each `ask`."""

    def __init__(self, former: asyncio.BaseProtocol, take: Callable[[Any], Any]) -> None:
        """`take` makes of a reply what `ask` returns, as soon as it comes."""
        self._former = former
        self._take = take
        self._reader = hiredis.Reader()
        self._reply: asyncio.Future[Any] | None = None
        self._lost: Exception | None = None

    def data_received(self, data: bytes) -> None:
        """Hands the reply over when it is complete."""
        self._reader.feed(data)
        try:
            reply = self._reader.gets()
        except hiredis.ProtocolError as error:
            self._fail(redis.exceptions.InvalidResponse(str(error)))
            return
        if reply is False or self._reply is None or self._reply.done():
            return
        try:
            taken = self._take(reply)
        except Exception as error:
            # Whoever waits for the reply is to fail, not the event loop.
            self._reply.set_exception(error)
        else:
            self._reply.set_result(taken)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells who waits, and redis-py, which may wait for the end of the connection."""
        self._fail(redis.exceptions.ConnectionError(str(exc or "Redis closed the connection")))
        self._former.connection_lost(exc)

    def _fail(self, error: Exception) -> None:
        self._lost = error
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

    async def ask(self, transport: asyncio.WriteTransport, command: bytes, timeout_seconds: float) -> Any:
        """Sends a command and waits for what was made of its reply.

        Raises:
            TimeoutError: there is none in time. The connection is of no use then.
        """
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        self._reply = loop.create_future()
        transport.write(command)
        # asyncio.timeout costs ten calls for each signal that comes alone.
        late = loop.call_later(timeout_seconds, self._fail, TimeoutError("Redis does not answer in time"))
        try:
            return await self._reply
        finally:
            late.cancel()


class BlockingRead:
    """Reads a stream's next entries, waiting for them on a connection of its own; `close` it."""

    def __init__(
        self,
        client: Redis,
        name: str,
        *,
        block_ms: int,
        count: int,
        on_entries: Callable[[tuple[Entry, ...]], None] | None = None,
    ) -> None:
        """`block_ms` is cut so that the answer comes before the client's time-out.

        `on_entries` gets what comes at once, a turn of the event loop before `after` returns the same.
        """
        self._client = client
        self._name = name
        self._count = count
        self._on_entries = on_entries
        self._block_ms = stream.block_ms_of(client, block_ms)
        self._timeout_seconds: float = client.connection_pool.connection_kwargs["socket_timeout"]
        self._connection: Any = None
        self._transport: asyncio.Transport | None = None
        self._replies: _Replies | None = None

    async def after(self, cursor: EntryId) -> tuple[Entry, ...]:
        """The entries behind `cursor`, oldest first, at most `count`; none when none came in `block_ms`.

        Raises:
            UnavailableError: Redis does not answer, or refuses; the next call connects anew.
        """
        with stream.translating():
            try:
                if self._connection is None:
                    await self._connect()
                entries = await self._ask(cursor)
                if entries is None:
                    await self.close()
                    entries = await self._by_client(cursor)
            except BaseException:
                await self.close()
                raise
        return entries

    async def _connect(self) -> None:
        pool: Any = self._client.connection_pool
        self._connection = await pool.get_connection()
        # redis-py names its transport nowhere else.
        self._transport = transport = cast(asyncio.Transport, self._connection._writer.transport)
        self._replies = _Replies(transport.get_protocol(), self._take)
        transport.set_protocol(self._replies)

    def _take(self, reply: Any) -> tuple[Entry, ...] | None:
        """The entries of a reply; None when it is an error."""
        if isinstance(reply, hiredis.ReplyError):
            return None
        entries = _entries(reply[0][1]) if reply else ()
        if entries and self._on_entries is not None:
            self._on_entries(entries)
        return entries

    async def _ask(self, cursor: EntryId) -> tuple[Entry, ...] | None:
        assert self._transport is not None
        assert self._replies is not None
        words: tuple[Any, ...] = (
            _XREAD,
            b"COUNT",
            self._count,
            b"BLOCK",
            self._block_ms,
            b"STREAMS",
            self._name,
            str(cursor),
        )
        entries: tuple[Entry, ...] | None = await self._replies.ask(
            self._transport, hiredis.pack_command(words), self._timeout_seconds
        )
        return entries

    async def _by_client(self, cursor: EntryId) -> tuple[Entry, ...]:
        """Asks again through redis-py, which knows what the error was that Redis answered with."""
        answer: Any = await self._client.xread({self._name: str(cursor)}, count=self._count)
        entries = stream.entries_of(answer[0][1]) if answer else ()
        if entries and self._on_entries is not None:
            self._on_entries(entries)
        return entries

    async def close(self) -> None:
        """Ends the connection. Safe to repeat."""
        connection, self._connection = self._connection, None
        self._transport = self._replies = None
        if connection is not None:
            # Without its protocol it is of no use to others: the pool opens it anew.
            await connection.disconnect(nowait=True)
            await self._client.connection_pool.release(connection)


def _entries(raw: list[Any]) -> tuple[Entry, ...]:
    """Entries as Redis tells them: [id, [field, value, …]]."""
    return tuple([Entry(_id(key), _payload(fields)) for key, fields in raw])


def _id(key: bytes) -> EntryId:
    ms, _, number = key.partition(b"-")
    return EntryId(int(ms), int(number))


def _payload(fields: list[bytes]) -> bytes | None:
    if len(fields) == 2 and fields[0] == stream.FIELD:
        return fields[1]
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(stream.FIELD)
