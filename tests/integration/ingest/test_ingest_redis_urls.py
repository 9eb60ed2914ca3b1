"""The ways to a Redis: password, user, database number, TCP, TLS; and what one is told about a wrong one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trustme

from mesh import ports
from mesh.embedded import redis
from services.common import stream
from services.common.errors import ConfigurationError
from tests.integration.ingest.front_door import ingest_running, read_log
from tests.integration.ingest.raw_master import logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger

DEBIAN_REDIS = "/usr/bin/redis-server"


async def one_signal_gets_through(url: str, ledger: StandInLedger, **overrides: object) -> None:
    async with ingest_running(url, ledger.port, **overrides) as ingest:
        assert ingest.publisher.is_ready
        async with logged_in(ingest.port) as master:
            master.send_signals(1)
            await master.acknowledged_up_to(1)


async def test_tcp_with_password_and_database_number(ledger: StandInLedger):
    with ports.port_block() as block:
        async with redis(tcp_port=block.take()) as server:
            await one_signal_gets_through(server.tcp_url_for(3), ledger)
            async with stream.connect(server.tcp_url_for(3)) as client:
                assert len(await read_log(client)) == 1
            async with stream.connect(server.tcp_url_for(0)) as client:
                assert await client.dbsize() == 0


async def test_a_user_with_a_password(ledger: StandInLedger):
    with ports.port_block() as block:
        port = block.take()
        async with redis(tcp_port=port) as server:
            async with stream.connect(server.url) as client:
                await client.acl_setuser(
                    "front-door", enabled=True, passwords=["+p%40ss"], keys=["*"], categories=["+@all"]
                )
            await one_signal_gets_through(f"redis://front-door:p%2540ss@127.0.0.1:{port}/0", ledger)


async def test_why_the_log_cannot_be_reached_is_in_the_log_of_the_process(
    ledger: StandInLedger, caplog: pytest.LogCaptureFixture
):
    with ports.port_block() as block:
        async with ingest_running(f"redis://127.0.0.1:{block.take()}", ledger.port) as ingest:
            assert not ingest.publisher.is_ready
    assert "the log cannot be reached: [Errno 111]" in caplog.text


async def test_a_wrong_password_is_not_in_the_log_of_the_process(
    ledger: StandInLedger, caplog: pytest.LogCaptureFixture
):
    with ports.port_block() as block:
        port = block.take()
        async with (
            redis(tcp_port=port),
            ingest_running(f"redis://:geheim@127.0.0.1:{port}/0", ledger.port) as ingest,
        ):
            assert not ingest.publisher.is_ready
    assert "refuses" in caplog.text
    assert "geheim" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "nonsense", "redis://127.0.0.1:x/0"])
async def test_a_wrong_url_is_one_clear_line(ledger: StandInLedger, url: str):
    with pytest.raises(ConfigurationError, match="REDIS_URL: is not a redis") as caught:
        async with ingest_running(url, ledger.port):
            pass
    assert url not in str(caught.value)


@pytest.mark.skipif(not shutil.which(DEBIAN_REDIS), reason=f"{DEBIAN_REDIS}, which has TLS, is not installed")
async def test_tls(ledger: StandInLedger, tmp_path: Path):
    ca, (certificate, key, ca_file) = trustme.CA(), (tmp_path / name for name in ("c.pem", "k.pem", "ca.pem"))
    issued = ca.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    ca.cert_pem.write_to_path(str(ca_file))
    with ports.port_block() as block:
        port, plain = block.take(), block.take()
        settings = {
            "tls-port": str(port),
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(ca_file),
            "tls-auth-clients": "no",
        }
        async with redis(binary=Path(DEBIAN_REDIS), tcp_port=plain, settings=settings) as server:
            url = f"rediss://:{server.password}@127.0.0.1:{port}/0"
            await one_signal_gets_through(f"{url}?ssl_ca_certs={ca_file}", ledger)
            async with ingest_running(url, ledger.port) as ingest:
                assert not ingest.publisher.is_ready
