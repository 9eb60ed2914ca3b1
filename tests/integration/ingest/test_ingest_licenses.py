"""Licenses and keys: refused at the login, remembered for a while, and ended in the middle of a session."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY

from execution.ingest.v1 import frames_pb2 as pb
from execution.ledger.v1 import events_pb2
from services.common.stream import LEDGER_EVENTS, Redis
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running, read_log
from tests.integration.ingest.raw_master import RawMaster, connected, logged_in
from tests.integration.ingest.stand_in_ledger import StandInLedger, announce, standing_in
from tests.integration.ingest.waiting import until
from tests.unit.ingest.signing import Credentials, login_body


async def refused(port: int, who: Credentials) -> pb.Reject:
    """The Reject of a login."""
    async with connected(port, who) as master:
        await master.greet()
        master.send(master.keys.login(login_body(who).SerializeToString()))
        return await master.reject()


async def open_again(port: int) -> RawMaster:
    async with logged_in(port) as master:
        return master


@pytest.mark.parametrize(
    "who",
    [
        Credentials(master_id=99),
        Credentials(key_id="another"),
        Credentials(license_token="another"),
    ],
)
async def test_what_exactly_is_unknown_is_not_told(ingest: Running, who: Credentials):
    reject = await refused(ingest.port, who)
    assert reject.code == pb.REJECT_CODE_UNAUTHENTICATED
    assert reject.message == "master, key or license is not known here"


async def test_a_wrong_secret_is_a_bad_mac(ingest: Running):
    assert (await refused(ingest.port, Credentials(secret=b"x" * 32))).code == pb.REJECT_CODE_BAD_MAC


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("LICENSE_EXPIRED", pb.REJECT_CODE_LICENSE_EXPIRED),
        ("LICENSE_REVOKED", pb.REJECT_CODE_LICENSE_REVOKED),
        ("KEY_REVOKED", pb.REJECT_CODE_UNAUTHENTICATED),
        ("MASTER_SUSPENDED", pb.REJECT_CODE_LICENSE_REVOKED),
    ],
)
async def test_the_ledgers_reason_becomes_a_code(
    ingest: Running, ledger: StandInLedger, reason: str, code: pb.RejectCode.ValueType
):
    ledger.refusals[1] = reason
    assert (await refused(ingest.port, Credentials())).code == code


async def test_a_key_of_each_length_signs(ingest: Running, ledger: StandInLedger):
    for number, length in enumerate((20, 64, 65, 131), start=10):
        who = ledger.add(Credentials(master_id=number, secret=bytes(range(length))))
        async with logged_in(ingest.port, who) as master:
            master.send_signals(1)
            await master.acknowledged_up_to(1)


async def test_a_login_asks_the_ledger_once_for_a_while(ingest: Running, ledger: StandInLedger):
    for _ in range(3):
        await open_again(ingest.port)
    assert ledger.asked == 1


async def test_logins_at_once_share_one_question(redis_url: str, ledger: StandInLedger):
    async with ingest_running(redis_url, ledger.port, connections_per_master_max=50) as ingest:
        await asyncio.gather(*(refused(ingest.port, Credentials(license_token="bad")) for _ in range(20)))
        assert ledger.asked == 1


async def test_answers_are_forgotten_one_by_one_when_there_are_too_many(
    redis_url: str, ledger: StandInLedger
):
    async with ingest_running(redis_url, ledger.port, authorisation_entries_max=2) as ingest:
        for master_id in (1, 2, 3):
            async with logged_in(ingest.port, ledger.add(Credentials(master_id=master_id))):
                pass
        assert len(ingest.door.authoriser._allowed) == 2
        await open_again(ingest.port)
        assert ledger.asked == 4


async def test_refusals_do_not_drive_out_those_who_may_log_in_while_the_ledger_is_away(
    redis_url: str, ledger: StandInLedger
):
    async with ingest_running(
        redis_url, ledger.port, authorisation_entries_max=2, authorisation_seconds=0
    ) as ingest:
        await open_again(ingest.port)
        for number in range(5):
            who = Credentials(license_token=f"guess-{number}")
            assert (await refused(ingest.port, who)).code == pb.REJECT_CODE_UNAUTHENTICATED
        assert len(ingest.door.authoriser._refused) == 2
        ledger.is_away = True
        await open_again(ingest.port)


async def test_a_master_that_was_refused_is_allowed_once_the_ledger_says_so(
    redis_url: str, ledger: StandInLedger
):
    async with ingest_running(redis_url, ledger.port, authorisation_negative_seconds=0) as ingest:
        ledger.refusals[1] = "LICENSE_EXPIRED"
        assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_LICENSE_EXPIRED
        ledger.refusals.clear()
        await open_again(ingest.port)
        assert len(ingest.door.authoriser._refused) == 0
        await open_again(ingest.port)
        assert ledger.asked == 2


async def test_while_the_ledger_is_away_known_masters_log_in_and_others_wait(
    redis_url: str, ledger: StandInLedger
):
    async with ingest_running(redis_url, ledger.port, authorisation_seconds=0) as ingest:
        await open_again(ingest.port)
        ledger.is_away = True
        await open_again(ingest.port)
        assert not ingest.door.authoriser.is_ledger_up
        ledger.add(Credentials(master_id=2))
        reject = await refused(ingest.port, Credentials(master_id=2))
        assert (reject.code, reject.retryable) == (pb.REJECT_CODE_UNAVAILABLE, True)
        ledger.is_away = False
        async with logged_in(ingest.port, Credentials(master_id=2)):
            assert ingest.door.authoriser.is_ledger_up


async def test_an_old_answer_does_not_serve_for_ever(redis_url: str, ledger: StandInLedger):
    async with ingest_running(
        redis_url, ledger.port, authorisation_seconds=0, authorisation_grace_seconds=0
    ) as ingest:
        await open_again(ingest.port)
        ledger.is_away = True
        assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_UNAVAILABLE


async def test_a_ledger_that_is_not_there_at_all_is_unavailable(redis_url: str):
    async with standing_in() as gone:
        port = gone.port
    async with ingest_running(redis_url, port, authorisation_timeout_seconds=0.5) as ingest:
        assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_UNAVAILABLE


def license_changed(*, revoked: bool, expires_in_seconds: float = 3_600) -> events_pb2.LedgerEvent:
    change = events_pb2.LicenseChanged(license_id="license-of-1", revoked=revoked)
    change.expires_at.FromMicroseconds(int((time.time() + expires_in_seconds) * 1e6))
    return events_pb2.LedgerEvent(event_id=1, license_changed=change)


def key_changed(key_id: str = "k1", **fields: bool) -> events_pb2.LedgerEvent:
    change = events_pb2.SigningKeyChanged(master_id=1, key_id=key_id, **fields)
    return events_pb2.LedgerEvent(event_id=2, signing_key_changed=change)


async def test_a_revoked_license_ends_the_session(ingest: Running, ledger: StandInLedger, log_client: Redis):
    async with logged_in(ingest.port) as master:
        ledger.refusals[1] = "LICENSE_REVOKED"
        await announce(log_client, license_changed(revoked=True))
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_LICENSE_REVOKED
    # And no remembered answer lets it in again.
    assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_LICENSE_REVOKED


async def test_a_license_revoked_while_the_ledger_answers_opens_nothing(
    ingest: Running, ledger: StandInLedger, log_client: Redis
):
    ledger.may_answer.clear()
    async with connected(ingest.port) as master:
        await master.greet()
        master.send(master.keys.login(login_body(master.who).SerializeToString()))
        await until(lambda: ledger.asked == 1)
        ledger.refusals[1] = "LICENSE_REVOKED"
        before = ingest.door.authoriser.changes
        await announce(log_client, license_changed(revoked=True))
        await until(lambda: ingest.door.authoriser.changes > before)
        ledger.may_answer.set()
        await master.rejected_with(pb.REJECT_CODE_LICENSE_REVOKED)


async def test_a_license_revoked_while_the_log_opens_the_session_ends_it(
    ingest: Running, ledger: StandInLedger, log_client: Redis, monkeypatch: pytest.MonkeyPatch
):
    opening: list[tuple[Any, ...]] = []
    open_log = ingest.publisher.open
    monkeypatch.setattr(ingest.publisher, "open", lambda *arguments: opening.append(arguments))
    async with connected(ingest.port) as master:
        await master.greet()
        master.send(master.keys.login(login_body(master.who).SerializeToString()))
        await until(lambda: bool(opening))
        ledger.refusals[1] = "LICENSE_REVOKED"
        before = ingest.door.authoriser.changes
        await announce(log_client, license_changed(revoked=True))
        await until(lambda: ingest.door.authoriser.changes > before)
        open_log(*opening[0])
        await master.expect("welcome")
        await master.rejected_with(pb.REJECT_CODE_LICENSE_REVOKED)


async def test_a_longer_license_does_not_prolong_its_key(
    redis_url: str, ledger: StandInLedger, log_client: Redis
):
    """The ledger tells when the first of both ends; an announced license tells only its own end."""
    ledger.expires_at[1] = time.time() + 600
    async with ingest_running(redis_url, ledger.port) as ingest, logged_in(ingest.port):
        peer = ingest.door.sessions.find(1)
        asked = ledger.asked
        await announce(log_client, license_changed(revoked=False, expires_in_seconds=3_600))
        await until(lambda: ledger.asked > asked)
        assert peer.session.handshake.authorisation.expires_at_us == int(ledger.expires_at[1] * 1e6)
        ledger.expires_at[1] = time.time() + 900
        await announce(log_client, license_changed(revoked=False, expires_in_seconds=900))
        await until(
            lambda: peer.session.handshake.authorisation.expires_at_us == int(ledger.expires_at[1] * 1e6)
        )


async def test_a_revoked_key_ends_only_its_own_session(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        await announce(log_client, key_changed("another", revoked=True))
        await announce(log_client, license_changed(revoked=False))
        master.send_signals(1)
        await master.acknowledged_up_to(1)
        await announce(log_client, key_changed(revoked=True))
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_LICENSE_REVOKED


async def test_a_key_is_rotated_without_a_pause(ingest: Running, ledger: StandInLedger, log_client: Redis):
    """While both count each signs its own sessions; then the old one is revoked, and only its sessions end."""
    new = ledger.rotate(Credentials(key_id="k2", secret=b"another secret of another length"))
    async with logged_in(ingest.port) as master:
        master.send_signals(1)
        await master.acknowledged_up_to(1)
    # Neither key's secret goes with the other's name.
    mixed = Credentials(key_id="k2")
    assert (await refused(ingest.port, mixed)).code == pb.REJECT_CODE_BAD_MAC
    async with logged_in(ingest.port, new, acknowledged=(1, 1)) as master:
        await announce(log_client, key_changed("k1", revoked=True))
        await announce(log_client, license_changed(revoked=False))
        master.send_signals(2)
        await master.acknowledged_up_to(2)
        del ledger.known[1]
        assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_UNAUTHENTICATED
        master.send_signals(3)
        await master.acknowledged_up_to(3)
    runs = await read_log(log_client)
    assert [(run.first_sequence, run.key_id) for run in runs if run.HasField("batch")] == [
        (1, "k1"), (2, "k2"), (3, "k2")
    ]  # fmt: skip


async def test_a_license_whose_end_was_moved_ends_the_session_then(
    redis_url: str, ledger: StandInLedger, log_client: Redis
):
    async with (
        ingest_running(redis_url, ledger.port, heartbeat_seconds=0.2) as ingest,
        logged_in(ingest.port) as master,
    ):
        ledger.expires_at[1] = time.time() + 0.1
        await announce(log_client, license_changed(revoked=False, expires_in_seconds=0.1))
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_LICENSE_EXPIRED


async def test_a_change_that_was_not_announced_is_noticed_too(redis_url: str, ledger: StandInLedger):
    async with (
        ingest_running(redis_url, ledger.port, recheck_seconds=0.1) as ingest,
        logged_in(ingest.port) as master,
    ):
        ledger.is_away = True
        await until(lambda: not ingest.door.authoriser.is_ledger_up)
        ledger.refusals[1] = "LICENSE_REVOKED"
        ledger.is_away = False
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_LICENSE_REVOKED


async def test_an_entry_that_is_no_event_is_skipped(ingest: Running, log_client: Redis):
    async with logged_in(ingest.port) as master:
        await log_client.xadd(LEDGER_EVENTS, {b"b": b"\xff\xff"})
        await log_client.xadd(LEDGER_EVENTS, {b"other": b"x"})
        await announce(log_client, license_changed(revoked=True))
        (frame,) = await master.ended()
        assert frame.reject.code == pb.REJECT_CODE_LICENSE_REVOKED


async def test_an_expired_license_is_refused_although_the_ledger_answered(
    ingest: Running, ledger: StandInLedger
):
    ledger.expires_at[1] = time.time() - 1
    assert (await refused(ingest.port, Credentials())).code == pb.REJECT_CODE_LICENSE_EXPIRED


async def test_logins_are_counted_by_what_decided_them(ingest: Running):
    def count(result: str) -> float:
        return REGISTRY.get_sample_value("ingest_authorisations_total", {"result": result}) or 0.0

    allowed, cached = count("allowed"), count("cached")
    await open_again(ingest.port)
    await open_again(ingest.port)
    assert (count("allowed"), count("cached")) == (allowed + 1, cached + 1)
