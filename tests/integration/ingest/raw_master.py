"""A master on a raw socket, as plain as a client can be: it signs, sends and shows what comes back; no outbox."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from execution.ingest.v1 import frames_pb2 as pb
from tests.unit.ingest.signing import Credentials, Keys, framed, login_body, signal

ANSWER_SECONDS_MAX = 20.0


@dataclass
class RawMaster:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    who: Credentials
    nonce: bytes = field(default_factory=lambda: os.urandom(16))
    keys: Keys | None = None
    welcome: pb.Welcome | None = None
    acknowledged: int = 0

    def send(self, *frames: pb.ClientFrame) -> None:
        self.send_bytes(b"".join(framed(frame.SerializeToString()) for frame in frames))

    def send_bytes(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> pb.ServerFrame | None:
        """The next frame that is no Ping; None at the end."""
        while True:
            frame = await self.receive_any()
            if frame is None or frame.WhichOneof("frame") != "ping":
                return frame
            self.send(pb.ClientFrame(pong=pb.Pong(id=frame.ping.id)))

    async def receive_any(self) -> pb.ServerFrame | None:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            try:
                length = int.from_bytes(await self.reader.readexactly(4), "big")
                payload = await self.reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        return pb.ServerFrame.FromString(payload)

    async def expect(self, kind: str) -> pb.ServerFrame:
        frame = await self.receive()
        assert frame is not None, f"the connection ended instead of a {kind}"
        assert frame.WhichOneof("frame") == kind, frame
        return frame

    async def reject(self) -> pb.Reject:
        """The next frame that is no Ack, which must be a Reject."""
        while True:
            frame = await self.receive()
            assert frame is not None, "the connection ended without a Reject"
            if frame.WhichOneof("frame") == "ack":
                self.acknowledged = frame.ack.sequence
                continue
            assert frame.WhichOneof("frame") == "reject", frame
            return frame.reject

    async def rejected_with(self, code: pb.RejectCode.ValueType) -> pb.Reject:
        reject = await self.reject()
        assert reject.code == code, reject
        return reject

    async def acknowledged_up_to(self, sequence: int) -> pb.Ack:
        while True:
            frame = await self.expect("ack")
            assert frame.ack.sequence <= sequence
            self.acknowledged = frame.ack.sequence
            if frame.ack.sequence == sequence:
                return frame.ack

    async def ended(self) -> list[pb.ServerFrame]:
        """Everything up to the end of the connection."""
        frames = []
        while (frame := await self.receive()) is not None:
            frames.append(frame)
        return frames

    async def greet(self) -> pb.Challenge:
        who = self.who
        self.send(
            pb.ClientFrame(
                hello=pb.Hello(version=1, master_id=who.master_id, key_id=who.key_id, nonce=self.nonce)
            )
        )
        challenge = (await self.expect("challenge")).challenge
        self.keys = Keys(who.secret, self.nonce, challenge.nonce)
        return challenge

    async def log_in(
        self, acknowledged: tuple[int, int] = (0, 0), *, begin_epoch: bool = False
    ) -> pb.Welcome:
        await self.greet()
        assert self.keys is not None
        body = login_body(self.who, acknowledged, begin_epoch=begin_epoch)
        self.send(self.keys.login(body.SerializeToString()))
        self.welcome = (await self.expect("welcome")).welcome
        self.acknowledged = self.welcome.position.sequence
        return self.welcome

    def send_signals(self, first: int, count: int = 1, **fields: object) -> None:
        assert self.keys is not None
        self.send(self.keys.signals(first, [signal(first + n, **fields) for n in range(count)]))

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(
    port: int, who: Credentials | None = None, *, tls: ssl.SSLContext | None = None, limit: int = 1 << 16
) -> AsyncIterator[RawMaster]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, limit=limit)
    master = RawMaster(reader, writer, who or Credentials())
    try:
        yield master
    finally:
        await master.close()


@asynccontextmanager
async def logged_in(
    port: int,
    who: Credentials | None = None,
    acknowledged: tuple[int, int] = (0, 0),
    *,
    begin_epoch: bool = False,
) -> AsyncIterator[RawMaster]:
    async with connected(port, who) as master:
        await master.log_in(acknowledged, begin_epoch=begin_epoch)
        yield master
