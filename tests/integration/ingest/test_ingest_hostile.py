"""People in the middle and half-hearted clients: replays, borrowed logins, bytes one by one, TLS that breaks off."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from execution.ingest.v1 import frames_pb2 as pb
from services.common.stream import Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.raw_master import RawMaster, connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import framed, login_body, signal


class Recorded:
    """Stands where a connection's writer stood and keeps what went over it."""

    def __init__(self, master: RawMaster) -> None:
        self._writer = master.writer
        self.data = b""
        master.writer = self

    def write(self, data: bytes) -> None:
        self.data += data
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    async def wait_closed(self) -> None:
        await self._writer.wait_closed()


async def record_session(port: int) -> bytes:
    """All bytes that a master sent in a session of ten signals."""
    async with connected(port) as master:
        recorded = Recorded(master)
        await master.log_in()
        for sequence in range(1, 11):
            master.send_signals(sequence)
        await master.acknowledged_up_to(10)
        return recorded.data


async def test_a_recorded_session_played_again_gets_no_further_than_its_login(
    ingest: Running, log_client: Redis
):
    recorded = await record_session(ingest.port)
    before = await log_client.xlen("signals:ingest")
    async with connected(ingest.port) as replay:
        replay.send_bytes(recorded)
        frames = await replay.ended()
    assert [frame.WhichOneof("frame") for frame in frames] == ["challenge", "reject"]
    assert frames[-1].reject.code == pb.REJECT_CODE_BAD_MAC
    assert await log_client.xlen("signals:ingest") == before


async def test_recorded_signals_do_not_fit_into_a_later_session(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as first:
        first.send_signals(1)
        await first.acknowledged_up_to(1)
        signed = first.keys.signals(2, [signal(2)])
    async with logged_in(ingest.port, acknowledged=(1, 1)) as later:
        later.send(signed)
        await later.rejected_with(pb.REJECT_CODE_BAD_MAC)
        assert await later.ended() == []
    assert set(signals_in(await read_log(log_client))) == {1}


async def test_a_login_made_for_one_connection_opens_no_other(ingest: Running, log_client: Redis):
    async with connected(ingest.port) as victim, connected(ingest.port) as thief:
        thief.nonce = victim.nonce
        await victim.greet()
        await thief.greet()
        login = victim.keys.login(login_body(victim.who).SerializeToString())
        thief.send(login)
        await thief.rejected_with(pb.REJECT_CODE_BAD_MAC)
        assert await thief.ended() == []
        # The victim's own connection is none the worse for it.
        victim.send(login)
        await victim.expect("welcome")


async def test_a_challenge_sent_back_as_the_clients_nonce_opens_nothing(ingest: Running):
    async with connected(ingest.port) as first, connected(ingest.port) as second:
        challenge = await first.greet()
        # Nonces the other way round: what one side said is now the other's.
        second.nonce = challenge.nonce
        await second.greet()
        second.send(first.keys.login(login_body(first.who).SerializeToString()))
        await second.rejected_with(pb.REJECT_CODE_BAD_MAC)


async def test_a_stranger_who_sends_byte_by_byte_is_gone_when_the_login_is_due(
    redis_url: str, ledger: StandInLedger
):
    async with (
        ingest_running(redis_url, ledger.port, unauthenticated_seconds_max=0.5) as ingest,
        connected(ingest.port) as stranger,
    ):
        ending = asyncio.create_task(stranger.ended())
        hello = framed(
            pb.ClientFrame(
                hello=pb.Hello(version=1, master_id=1, key_id="k1", nonce=b"n" * 32)
            ).SerializeToString()
        )
        for index in range(10_000):
            if ending.done():
                break
            stranger.send_bytes(hello[index % len(hello) :][:1])
            await asyncio.sleep(0.02)
        frames = await ending
        assert frames[-1].reject.code == pb.REJECT_CODE_UNAUTHENTICATED
        await until(lambda: ingest.front_door.connections == 0)


async def test_a_whole_session_byte_by_byte_is_a_session(ingest: Running, log_client: Redis):
    async with connected(ingest.port) as master:
        write = master.writer.write
        master.writer.transport.set_write_buffer_limits(high=1 << 20)

        def one_by_one(data: bytes) -> None:
            for index in range(len(data)):
                write(data[index : index + 1])

        master.send_bytes = one_by_one
        await master.log_in()
        master.send_signals(1, 3)
        await master.acknowledged_up_to(3)
    assert set(signals_in(await read_log(log_client))) == {1, 2, 3}


class TlsBytes:
    """A TLS client whose records can be held back, cut and sent as one likes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        self.reader, self.writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def handshake(self, *, upto_bytes: int | None = None) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.writer.write(self._outgoing.read()[:upto_bytes])
                if upto_bytes is not None:
                    return
                self._incoming.write(await self.reader.read(65_536))
            else:
                self.writer.write(self._outgoing.read())
                return

    def record(self, data: bytes) -> bytes:
        """The TLS record of some plaintext."""
        self._tls.write(data)
        return self._outgoing.read()

    async def plaintext(self) -> bytes:
        while True:
            try:
                return self._tls.read(65_536)
            except ssl.SSLWantReadError:
                data = await self.reader.read(65_536)
                if not data:
                    return b""
                self._incoming.write(data)

    async def plaintext_until_alert(self) -> bytes:
        """What came before the connection broke, with an alert or without."""
        received = b""
        try:
            while data := await self.plaintext():
                received += data
        except ssl.SSLError:
            pass
        return received


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_settings(tmp_path: Path, authority: trustme.CA) -> dict[str, object]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return {"tls_certificate_file": certificate, "tls_key_file": key}


async def tls_client(port: int, authority: trustme.CA) -> TlsBytes:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return TlsBytes(*await asyncio.open_connection("127.0.0.1", port), context)


HELLO = framed(
    pb.ClientFrame(hello=pb.Hello(version=1, master_id=1, key_id="k1", nonce=b"n" * 32)).SerializeToString()
)


@pytest.mark.parametrize("how", ["in the handshake", "in a record", "between records"])
async def test_tls_that_breaks_off_leaves_nothing_behind(
    redis_url: str, ledger: StandInLedger, authority: trustme.CA, tls_settings: dict[str, object], how: str
):
    async with ingest_running(redis_url, ledger.port, linger_seconds=0.3, **tls_settings) as ingest:
        client = await tls_client(ingest.port, authority)
        if how == "in the handshake":
            await client.handshake(upto_bytes=60)
        else:
            await client.handshake()
            record = client.record(HELLO)
            client.writer.write(record[:-7] if how == "in a record" else record)
            if how == "between records":
                answer = await client.plaintext()
                assert pb.ServerFrame.FromString(answer[4:]).HasField("challenge")
        await client.writer.drain()
        # The end of the TCP connection without TLS's own goodbye: anybody on the way could have done it.
        client.writer.close()
        await client.writer.wait_closed()
        await until(lambda: ingest.front_door.connections == 0)


async def test_a_tls_record_that_was_changed_on_its_way_ends_the_connection(
    redis_url: str, ledger: StandInLedger, authority: trustme.CA, tls_settings: dict[str, object]
):
    async with ingest_running(redis_url, ledger.port, linger_seconds=0.3, **tls_settings) as ingest:
        client = await tls_client(ingest.port, authority)
        await client.handshake()
        record = bytearray(client.record(HELLO))
        record[-1] ^= 1
        client.writer.write(bytes(record))
        assert await client.plaintext_until_alert() == b""
        client.writer.close()
        await client.writer.wait_closed()
        await until(lambda: ingest.front_door.connections == 0)
