"""Who is let in at all: by network, by client certificate, and how many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as os_signals
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import redis
from services.common.errors import ConfigurationError
from services.ingest import certificates
from tests.integration.ingest.cuts import cut
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.raw_master import connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, login_body

# By network


async def test_only_the_allowed_networks_are_let_in(redis_url: str, ledger: StandInLedger):
    before = cut("network")
    async with ingest_running(
        redis_url, ledger.port, allowed_networks="10.0.0.0/8, 2001:db8::/32, 127.0.0.2"
    ) as ingest:
        reader, writer = await asyncio.open_connection("127.0.0.1", ingest.port)
        # Not even a reason: whoever it is gets nothing to work with.
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert cut("network") == before + 1
        assert (ingest.front_door.connections, ingest.front_door.refused) == (0, 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", ingest.port, local_addr=("127.0.0.2", 0))
        await until(lambda: ingest.front_door.connections == 1)
        writer.close()
    assert cut("network") == before + 1


async def test_an_ipv6_network_is_let_in_and_counted_as_one(redis_url: str, ledger: StandInLedger):
    if not socket.has_ipv6 or not _has_loopback_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    before = cut("network")
    async with ingest_running(
        redis_url, ledger.port, bind_address="[::1]:0", allowed_networks="::1/128"
    ) as ingest:
        reader, writer = await asyncio.open_connection("::1", ingest.port)
        await until(lambda: ingest.front_door.connections == 1)
        writer.close()
        await until(lambda: ingest.front_door.connections == 0)
    async with ingest_running(
        redis_url, ledger.port, bind_address="[::1]:0", allowed_networks="2001:db8::/32"
    ) as ingest:
        reader, writer = await asyncio.open_connection("::1", ingest.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert cut("network") == before + 1


def _has_loopback_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


async def test_a_network_that_is_none_is_one_clear_line(redis_url: str, ledger: StandInLedger):
    with pytest.raises(ConfigurationError, match=r"^ALLOWED_NETWORKS: .*has host bits set"):
        async with ingest_running(redis_url, ledger.port, allowed_networks="10.0.0.1/8"):
            pass


# By certificate


class Authority:
    """A CA for masters and the server's own files."""

    def __init__(self, folder: Path) -> None:
        self.servers, self.masters = trustme.CA(), trustme.CA()
        issued = self.servers.issue_cert("127.0.0.1")
        self.certificate, self.key, self.ca = folder / "c.pem", folder / "k.pem", folder / "ca.pem"
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.masters.cert_pem.write_to_path(str(self.ca))

    @property
    def settings(self) -> dict[str, object]:
        return {
            "tls_certificate_file": self.certificate,
            "tls_key_file": self.key,
            "master_ca_file": self.ca,
        }

    def client(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.servers.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_master_shows_its_certificate_and_logs_in(
    redis_url: str, ledger: StandInLedger, authority: Authority
):
    ledger.add(Credentials(master_id=2))
    named = authority.masters.issue_cert("master-1.masters.example.com")
    async with ingest_running(redis_url, ledger.port, **authority.settings) as ingest:
        async with connected(ingest.port, tls=authority.client(named)) as master:
            await master.log_in()
            master.send_signals(1, 3)
            await master.acknowledged_up_to(3)
            master.writer.transport.abort()
        # The certificate adds to the login and replaces nothing of it.
        async with connected(
            ingest.port, Credentials(secret=b"x" * 32), tls=authority.client(named)
        ) as master:
            await master.greet()
            master.send(master.keys.login(login_body(master.who).SerializeToString()))
            await master.rejected_with(pb.REJECT_CODE_BAD_MAC)
            master.writer.transport.abort()
        # It is this master's and no other's, even if the other's secret is known.
        async with connected(ingest.port, Credentials(master_id=2), tls=authority.client(named)) as other:
            asked = ledger.asked
            other.send(
                pb.ClientFrame(
                    hello=pb.Hello(version=1, master_id=2, key_id=other.who.key_id, nonce=other.nonce)
                )
            )
            reject = await other.rejected_with(pb.REJECT_CODE_UNAUTHENTICATED)
            assert "certificate" in reject.message
            assert ledger.asked == asked
            other.writer.transport.abort()


async def test_a_certificate_that_names_no_master_is_for_any(
    redis_url: str, ledger: StandInLedger, authority: Authority
):
    ledger.add(Credentials(master_id=2))
    bridge = authority.client(authority.masters.issue_cert("bridge.example.com"))
    async with ingest_running(redis_url, ledger.port, **authority.settings) as ingest:
        for master_id in (1, 2):
            async with connected(ingest.port, Credentials(master_id=master_id), tls=bridge) as master:
                await master.log_in()
                master.writer.transport.abort()


@pytest.mark.parametrize("shown", ["nothing", "a stranger's", "the server's own CA's"])
async def test_without_a_certificate_of_the_masters_ca_nobody_gets_in(
    redis_url: str, ledger: StandInLedger, authority: Authority, shown: str
):
    certificates = {
        "nothing": None,
        "a stranger's": trustme.CA().issue_cert("master-1"),
        "the server's own CA's": authority.servers.issue_cert("master-1"),
    }
    before = cut("tls")
    async with ingest_running(redis_url, ledger.port, **authority.settings) as ingest:
        with pytest.raises((ConnectionError, ssl.SSLError, AssertionError)):
            async with connected(ingest.port, tls=authority.client(certificates[shown])) as stranger:
                await stranger.greet()
        await until(lambda: cut("tls") == before + 1)
        await until(lambda: ingest.front_door.connections == 0)
        assert ledger.asked == 0


async def test_another_ca_is_taken_up_without_a_restart(
    redis_url: str, ledger: StandInLedger, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(certificates, "_LOOK_SECONDS", 0.0)
    later = trustme.CA()
    async with ingest_running(redis_url, ledger.port, **authority.settings) as ingest:
        context = authority.client(authority.masters.issue_cert("master-1"))
        async with connected(ingest.port, tls=context) as master:
            await master.greet()
            master.writer.transport.abort()
        later.cert_pem.write_to_path(str(authority.ca))
        with pytest.raises((ConnectionError, ssl.SSLError, AssertionError)):
            async with connected(ingest.port, tls=context) as master:
                await master.greet()
        async with connected(ingest.port, tls=authority.client(later.issue_cert("master-1"))) as master:
            await master.greet()
            master.writer.transport.abort()


async def test_a_ca_without_a_certificate_of_the_servers_or_that_is_none_is_one_clear_line(
    redis_url: str, ledger: StandInLedger, authority: Authority
):
    with pytest.raises(ConfigurationError, match="MASTER_CA_FILE needs"):
        async with ingest_running(redis_url, ledger.port, master_ca_file=authority.ca):
            pass
    authority.ca.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="MASTER_CA_FILE: cannot use"):
        async with ingest_running(redis_url, ledger.port, **authority.settings):
            pass


# How many


async def test_those_who_are_one_too_many_take_nobodys_place(redis_url: str, ledger: StandInLedger):
    """However many come, so many are told why and the others closed; whoever may come in still can."""
    before = cut("address")
    async with ingest_running(
        redis_url,
        ledger.port,
        connections_per_address_max=2,
        connections_max=4,
        refused_connections_max=3,
        linger_seconds=60,
    ) as ingest:
        admitted = [await asyncio.open_connection("127.0.0.1", ingest.port) for _ in range(2)]
        await until(lambda: ingest.front_door.connections == 2)
        flood = [await asyncio.open_connection("127.0.0.1", ingest.port) for _ in range(50)]
        await until(lambda: cut("address") == before + 50)
        await until(lambda: ingest.front_door.refused == 3)
        assert ingest.front_door.connections == 2
        told = [await _reason(reader) for reader, _ in flood[:3]]
        assert told == [pb.REJECT_CODE_TOO_MANY_CONNECTIONS] * 3
        for reader, _ in flood[3:]:
            assert await _reason(reader) is None
        # Neither the count of all nor that of the address is used up by them.
        _, writer = await asyncio.open_connection("127.0.0.1", ingest.port, local_addr=("127.0.0.2", 0))
        await until(lambda: ingest.front_door.connections == 3)
        for _, one in (*admitted, *flood):
            one.close()
        await until(lambda: (ingest.front_door.connections, ingest.front_door.refused) == (1, 0))
        async with logged_in(ingest.port):
            pass
        writer.close()


async def _reason(reader: asyncio.StreamReader) -> int | None:
    """The code of the Reject that came, if any came before the end."""
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        return pb.ServerFrame.FromString(await reader.readexactly(length)).reject.code
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def test_those_being_refused_do_not_hold_up_the_end(redis_url: str, ledger: StandInLedger):
    async with ingest_running(
        redis_url, ledger.port, connections_per_address_max=1, linger_seconds=60, drain_grace_seconds=60
    ) as ingest:
        one = await asyncio.open_connection("127.0.0.1", ingest.port)
        refused = await asyncio.open_connection("127.0.0.1", ingest.port)
        await until(lambda: ingest.front_door.refused == 1)
        one[1].close()
        await until(lambda: ingest.front_door.connections == 0)
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            await refused[0].read()
    refused[1].close()


async def test_more_logins_of_one_master_than_allowed_are_refused(ledger: StandInLedger):
    """They count from the proof of who they are on; here they all wait for a log that stalls."""
    before = cut("master")
    async with (
        redis() as server,
        ingest_running(
            server.url, ledger.port, connections_per_master_max=2, redis_timeout_seconds=30
        ) as ingest,
        contextlib.AsyncExitStack() as stack,
    ):
        masters = [await stack.enter_async_context(connected(ingest.port)) for _ in range(3)]
        os.kill(server.pid, os_signals.SIGSTOP)
        try:
            for number, master in enumerate(masters):
                await master.greet()
                master.send(master.keys.login(login_body(master.who).SerializeToString()))
                await until(lambda number=number: ingest.door.sessions.count(1, 0) == min(2, number + 1))
            reject = await masters[2].rejected_with(pb.REJECT_CODE_TOO_MANY_CONNECTIONS)
            assert "of this master" in reject.message
            assert reject.retryable
        finally:
            os.kill(server.pid, os_signals.SIGCONT)
        assert cut("master") == before + 1
        await until(lambda: ingest.door.sessions.count(1, 0) <= 1)


def test_no_more_connections_are_taken_than_there_are_files_for():
    code = (
        "import resource, logging; logging.basicConfig()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
        "from services.ingest.open_files import connections_that_fit\n"
        "print(connections_that_fit(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "print(connections_that_fit(5_000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "356", "144", "400"]
    assert "CONNECTIONS_MAX=5000" in done.stderr
