"""TLS at the front door: certificates, their renewal, clients that must show one, and where plaintext is allowed."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import redis
from services.common.errors import ConfigurationError
from services.ingest import certificates
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import connected
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.waiting import until


class Files:
    """A CA and the server's files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.certificate = folder / "certificate.pem"
        self.key = folder / "key.pem"
        self.client_ca = folder / "client-ca.pem"
        self.ca.cert_pem.write_to_path(str(self.client_ca))
        self.issue()

    def issue(self, ca: trustme.CA | None = None) -> None:
        issued = (ca or self.ca).issue_cert("127.0.0.1")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def client(self, ca: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        (ca or self.ca).configure_trust(context)
        return context

    @property
    def settings(self) -> dict[str, object]:
        return {"tls_certificate_file": self.certificate, "tls_key_file": self.key}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_a_session_runs_over_tls(redis_url: str, ledger: StandInLedger, files: Files):
    async with (
        ingest_running(redis_url, ledger.port, **files.settings) as ingest,
        connected(ingest.port, tls=files.client()) as master,
    ):
        await master.log_in()
        for first in range(1, 400, 40):
            master.send_signals(first, 40)
        await master.acknowledged_up_to(400)
        master.writer.transport.abort()


async def test_a_reject_arrives_although_the_client_was_still_sending(
    redis_url: str, ledger: StandInLedger, files: Files
):
    async with (
        ingest_running(redis_url, ledger.port, **files.settings) as ingest,
        connected(ingest.port, tls=files.client()) as master,
    ):
        await master.log_in()
        master.send_bytes((65_537).to_bytes(4, "big") + b"x" * 300_000)
        (frame,) = await master.ended()
        assert frame.HasField("reject")


async def test_a_client_that_closes_behind_its_bye_writes_nothing_into_our_log(
    ledger: StandInLedger, files: Files, caplog: pytest.LogCaptureFixture
):
    """TLS cannot be closed on one side only: nobody is there who could wait for an answer."""
    async with (
        redis() as server,
        ingest_running(server.url, ledger.port, **files.settings) as ingest,
        connected(ingest.port, tls=files.client()) as master,
    ):
        await master.log_in()
        os.kill(server.pid, os_signals.SIGSTOP)
        try:
            master.send_signals(1)
            master.send(pb.ClientFrame(bye=pb.Bye()))
            await until(lambda: ingest.door.sessions.all()[0].session.is_leaving)
            master.writer.close()
            await until(lambda: ingest.front_door.connections == 0)
        finally:
            os.kill(server.pid, os_signals.SIGCONT)
    assert "eof_received" not in caplog.text


async def test_plaintext_to_a_tls_port_gets_nothing(redis_url: str, ledger: StandInLedger, files: Files):
    async with (
        ingest_running(redis_url, ledger.port, **files.settings) as ingest,
        connected(ingest.port) as master,
    ):
        master.send_bytes(b"\0\0\0\x05hello" * 100)
        assert await master.receive_any() is None
        await until(lambda: ingest.front_door.connections == 0)


async def test_a_handshake_that_never_ends_is_counted_and_cut(
    redis_url: str, ledger: StandInLedger, files: Files
):
    async with ingest_running(
        redis_url,
        ledger.port,
        unauthenticated_seconds_max=0.3,
        unauthenticated_connections_max=1,
        **files.settings,
    ) as ingest:
        reader, writer = await asyncio.open_connection("127.0.0.1", ingest.port)
        await until(lambda: ingest.front_door.connections == 1)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            async with connected(ingest.port, tls=files.client()):
                pass
        assert await reader.read() == b""
        writer.close()
        await until(lambda: ingest.front_door.connections == 0)


async def test_a_renewed_certificate_is_used_for_new_connections(
    redis_url: str, ledger: StandInLedger, files: Files, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)
    other = trustme.CA()
    async with (
        ingest_running(redis_url, ledger.port, **files.settings) as ingest,
        connected(ingest.port, tls=files.client()) as before,
    ):
        await before.log_in()
        files.key.write_bytes(b"not a key")
        async with connected(ingest.port, tls=files.client()) as still:
            await still.greet()
            still.writer.transport.abort()
        files.issue(other)
        async with connected(ingest.port, tls=files.client(other)) as renewed:
            await renewed.greet()
            renewed.writer.transport.abort()
        before.send_signals(1)
        await before.acknowledged_up_to(1)
        before.writer.transport.abort()


async def test_plaintext_beyond_loopback_must_be_allowed(redis_url: str, ledger: StandInLedger):
    with pytest.raises(ConfigurationError, match=r"TLS_CERTIFICATE_FILE.*ALLOW_PLAINTEXT"):
        async with ingest_running(redis_url, ledger.port, bind_address="0.0.0.0:0"):
            pass
    async with ingest_running(
        redis_url, ledger.port, bind_address="0.0.0.0:0", allow_plaintext=True
    ) as ingest:
        assert ingest.port


async def test_a_certificate_that_cannot_be_used_is_one_clear_line(
    redis_url: str, ledger: StandInLedger, files: Files
):
    os.truncate(files.key, 10)
    with pytest.raises(ConfigurationError, match="TLS_CERTIFICATE_FILE: cannot use") as caught:
        async with ingest_running(redis_url, ledger.port, **files.settings):
            pass
    assert "\n" not in str(caught.value)


async def test_a_key_with_a_passphrase_is_refused_and_not_asked_about(
    redis_url: str, ledger: StandInLedger, files: Files
):
    key = load_pem_private_key(files.key.read_bytes(), None)
    locked = BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, locked))
    with pytest.raises(ConfigurationError, match="the key has a passphrase"):
        async with ingest_running(redis_url, ledger.port, **files.settings):
            pass


async def test_a_missing_key_is_named(redis_url: str, ledger: StandInLedger, files: Files):
    files.key.unlink()
    with pytest.raises(ConfigurationError, match=r"key\.pem: cannot read: No such file"):
        async with ingest_running(redis_url, ledger.port, **files.settings):
            pass


async def test_a_port_in_use_is_one_clear_line(redis_url: str, ledger: StandInLedger):
    async with ingest_running(redis_url, ledger.port) as ingest:
        with pytest.raises(ConfigurationError, match="BIND_ADDRESS: cannot listen") as caught:
            async with ingest_running(redis_url, ledger.port, bind_address=f"127.0.0.1:{ingest.port}"):
                pass
        assert "\n" not in str(caught.value)
