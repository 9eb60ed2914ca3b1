"""What a developer sees who gave a client a wrong token, certificate, folder or number."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme

from ecp_client.copying import CopySettings
from ecp_client.errors import SettingsError, WrongThreadError
from ecp_client.master import MasterEvent, MasterSettings, MasterThread
from ecp_client.subscriber import StreamEnded, Subscriber, SubscriberSettings, SyncState
from execution.common.v1.signal_pb2 import SIGNAL_KIND_OPEN
from execution.fanout.v1 import fanout_service_pb2_grpc
from tests.integration.clients.application import WAIT_SECONDS, App, settings
from tests.integration.clients.scripted_server import Fanout, ScriptedServer, says, serving, signals
from tests.unit.clients.made import signal
from tests.waiting import until

OPENING = signal(SIGNAL_KIND_OPEN, 1)
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def subscribing(**overrides: object) -> SubscriberSettings:
    return SubscriberSettings(**{"addresses": ["127.0.0.1:1"], "license_token": "token", **overrides})


def sending(**overrides: object) -> MasterSettings:
    values: dict[str, object] = {
        "addresses": ["127.0.0.1:1"],
        "master_id": 1,
        "key_id": "key",
        "secret": b"secret",
        "license_token": "token",
        "outbox_folder": Path("outbox"),
    }
    return MasterSettings(**{**values, **overrides})


@pytest.mark.parametrize("make", [subscribing, sending])
@pytest.mark.parametrize("token", ["ecp_abc\n", " ecp_abc", "ecp_äbc", ""])
def test_a_token_with_what_no_token_has_is_refused(make: Callable[..., object], token: str) -> None:
    with pytest.raises(SettingsError, match="license_token"):
        make(license_token=token)


@pytest.mark.parametrize("make", [subscribing, sending])
def test_one_address_is_not_a_list_of_letters(make: Callable[..., object]) -> None:
    with pytest.raises(SettingsError, match="addresses must be a list"):
        make(addresses="fanout.example:50051")


@pytest.mark.parametrize(
    "wrong",
    [
        {"acknowledge_interval_seconds": 0},
        {"report_interval_seconds": 0},
        {"checkpoint_interval_seconds": -1},
        {"fsync_interval_seconds": 0},
        {"silence_seconds_max": 0},
        {"call_timeout_seconds": 0},
        {"full_sync_seconds_min": 5, "full_sync_seconds_max": 1},
        {"full_sync_seconds_min": 0},
        {"masters": [1]},
        {"masters": {1: None}},
        {"masters": {"1": CopySettings()}},
        {"copy": None},
        {"journal_folder": "journal"},
        {"risk_addresses": "risk.example:50051"},
    ],
)
def test_a_subscribers_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        subscribing(**wrong)


@pytest.mark.parametrize("wrong", [{"outbox_folder": "outbox"}, {"secret": "secret"}])
def test_a_masters_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        sending(**wrong)


async def test_a_masters_callback_that_closes_it_is_told_so_and_the_client_goes_on(tmp_path: Path) -> None:
    def follow() -> list[type[Exception]]:
        raised: list[type[Exception]] = []
        told = threading.Event()

        def on_event(_event: MasterEvent) -> None:
            try:
                client.close()
            except Exception as error:
                raised.append(type(error))
            told.set()

        given = sending(plaintext=True, outbox_folder=tmp_path, reconnect_seconds_min=0.01)
        client = MasterThread(given, on_event=on_event)
        with client:
            assert told.wait(WAIT_SECONDS)
            assert client.send(OPENING) == 1
        return raised

    assert set(await asyncio.to_thread(follow)) == {WrongThreadError}


@pytest.mark.parametrize("content", [None, "something else"])
async def test_certificates_that_cannot_be_read_are_refused_before_anything_is_opened(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match="ca_file"):
        Subscriber(subscribing(ca_file=path, journal_folder=tmp_path / "journal"))
    assert not (tmp_path / "journal").exists()


async def test_another_token_is_looked_at_too() -> None:
    async with serving(says(signals(1))) as server, App().subscriber(settings(server)) as client:
        with pytest.raises(SettingsError, match="license_token"):
            client.set_license_token("ecp_abc\n")
        await client.wait_position(1, 1, WAIT_SECONDS)


async def test_a_refreshed_token_that_is_none_is_not_used() -> None:
    async with serving(says(signals(1), then=grpc.StatusCode.UNAUTHENTICATED)) as server:

        async def refresh() -> str:
            return "ecp_abc\n"

        given = settings(server, refused_seconds_max=0.05)
        async with App().subscriber(given, refresh_token=refresh) as client:
            await until(lambda: len(server.tokens) > 2)
            assert client.stats.callback_errors > 0
        assert set(server.tokens) == {"Bearer token"}


async def test_a_client_that_is_closed_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    async with serving(says(signals(1))) as server:
        client = App().subscriber(settings(server, journal_folder=tmp_path))
        await client.start()
        await client.close()


@pytest.mark.parametrize(
    ("served", "trusted", "why"),
    [
        ("ours", "theirs", "CERTIFICATE_VERIFY_FAILED"),
        ("expired", "ours", "certificate has expired"),
        ("other name", "ours", "Hostname Verification"),
    ],
)
async def test_a_certificate_that_is_not_trusted_is_told_and_tried_again(
    tmp_path: Path, served: str, trusted: str, why: str
) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    certificates = {
        "ours": lambda: ours.issue_cert("127.0.0.1"),
        "other name": lambda: ours.issue_cert("example.org"),
        "expired": lambda: ours.issue_cert(
            "127.0.0.1", not_before=PAST, not_after=PAST + datetime.timedelta(days=1)
        ),
    }
    certificate = certificates[served]()
    path = tmp_path / "ca.pem"
    (ours if trusted == "ours" else theirs).cert_pem.write_to_path(str(path))
    scripted = ScriptedServer([says(signals(1))])
    server = grpc.aio.server()
    fanout_service_pb2_grpc.add_FanoutServiceServicer_to_server(Fanout(scripted), server)
    chain = b"".join(one.bytes() for one in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    scripted.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    app = App()
    try:
        async with app.subscriber(settings(scripted, plaintext=False, ca_file=path)) as client:
            await until(lambda: len(app.ends()) >= 2)
            assert client.state(1) is SyncState.STARTING
    finally:
        await server.stop(0)
    reasons = [event.reason for event in app.events if isinstance(event, StreamEnded)]
    assert why in reasons[0]
    assert app.sequences == []


async def test_certificates_that_vanish_are_waited_for(tmp_path: Path) -> None:
    """They may be in the middle of being replaced; whoever connects anew reads them anew."""
    ours = trustme.CA()
    path = tmp_path / "ca.pem"
    ours.cert_pem.write_to_path(str(path))
    app = App()
    async with serving(says(signals(1))) as server:
        given = settings(server, plaintext=False, ca_file=path, risk_addresses=[server.address])
        async with app.subscriber(given) as client:
            path.unlink()
            await until(lambda: any("ca_file" in event.reason for event in _ended(app)))
            assert not any(event.is_final for event in _ended(app))
            await asyncio.sleep(0)
            assert client.failure is None


def _ended(app: App) -> list[StreamEnded]:
    return [event for event in app.events if isinstance(event, StreamEnded)]
