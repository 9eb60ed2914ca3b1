"""How the master client gets to a front door: with a certificate of its own, and past addresses where nobody is."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import trustme

from ecp_client.master import Disconnected, Master, MasterEvent, MasterSettings, SessionOpened
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.unit.ingest.signing import Credentials, signal

WAIT_SECONDS = 20


def settings(addresses: list[str], folder: Path, **overrides: object) -> MasterSettings:
    who = Credentials()
    values: dict[str, object] = {
        "addresses": addresses,
        "master_id": who.master_id,
        "key_id": who.key_id,
        "secret": who.secret,
        "license_token": who.license_token,
        "outbox_folder": folder / "outbox",
        "reconnect_seconds_min": 0.01,
        "reconnect_seconds_max": 0.1,
        "refused_seconds_max": 0.2,
        **overrides,
    }
    return MasterSettings(**values)


async def test_with_a_certificate_of_its_own(
    redis_url: str, masters_ledger: StandInLedger, tmp_path: Path
) -> None:
    servers, masters = trustme.CA(), trustme.CA()
    issued = servers.issue_cert("127.0.0.1")
    certificate, key, ca = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "masters.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    masters.cert_pem.write_to_path(str(ca))

    def context(name: str | None) -> ssl.SSLContext:
        made = ssl.create_default_context()
        servers.configure_trust(made)
        if name is not None:
            masters.issue_cert(name).configure_cert(made)
        return made

    seen: list[MasterEvent] = []
    files = {"tls_certificate_file": certificate, "tls_key_file": key, "master_ca_file": ca}
    async with ingest_running(redis_url, masters_ledger.port, **files) as ingest:
        address = [f"127.0.0.1:{ingest.port}"]
        async with Master(settings(address, tmp_path, ssl_context=context("master-1"))) as master:
            master.put_many([signal(number) for number in range(1, 101)])
            await master.wait_all_acknowledged(WAIT_SECONDS)
        for name in ("master-2", None):
            refused = settings(address, tmp_path / f"{name}", ssl_context=context(name))
            seen.clear()
            async with Master(refused, on_event=seen.append):
                async with asyncio.timeout(WAIT_SECONDS):
                    while not seen:  # noqa: ASYNC110  # events have no awaitable
                        await asyncio.sleep(0.01)
            assert not any(isinstance(one, SessionOpened) for one in seen)
            first = next(one for one in seen if isinstance(one, Disconnected))
            assert first.code == ("UNAUTHENTICATED" if name else "")


async def test_past_addresses_where_nobody_is(ingest: Running, tmp_path: Path) -> None:
    seen: list[MasterEvent] = []
    addresses = ["127.0.0.1:1", "127.0.0.1:2", f"127.0.0.1:{ingest.port}"]
    async with Master(settings(addresses, tmp_path, plaintext=True), on_event=seen.append) as master:
        for _ in range(3):
            number = master.put(signal(master.last_sequence + 1))
            await master.wait_acknowledged(number, WAIT_SECONDS)
            # Wherever the turn begins: the next connection finds its way past those that are dead again.
            session = ingest.door.sessions.find(1)
            assert session is not None
            session.session.say_bye("go round")
            session.send()
        await master.wait_all_acknowledged(WAIT_SECONDS)
    reasons = [one.reason for one in seen if isinstance(one, Disconnected)]
    assert any("127.0.0.1:1" in reason for reason in reasons)
    assert any("127.0.0.1:2" in reason for reason in reasons)
    assert len([one for one in seen if isinstance(one, SessionOpened)]) >= 3
