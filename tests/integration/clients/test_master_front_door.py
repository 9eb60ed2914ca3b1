"""The master client against the real front door."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest
import trustme
from redis.asyncio import Redis

from ecp_client.books import Book
from ecp_client.disk import FsyncPolicy
from ecp_client.errors import (
    ClosedError,
    LoginRefusedError,
    OutboxLockedError,
    SignalInvalidError,
    SignalRefusedError,
)
from ecp_client.master import (
    Disconnected,
    Master,
    MasterEvent,
    MasterSettings,
    MasterState,
    MasterThread,
    OutboxSettings,
    SequencesMoved,
    SessionOpened,
    SignalRefused,
    SnapshotStored,
)
from execution.common.v1 import signal_pb2
from services.ingest.app import Running
from tests.integration.ingest.front_door import ingest_running, read_log, signals_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.unit.ingest.signing import Credentials, now_us, signal
from tests.waiting import until

WAIT_SECONDS = 20
HOUR_US = 3_600_000_000


def settings(port: int, folder: Path, **overrides: object) -> MasterSettings:
    who = Credentials()
    values: dict[str, object] = {
        "addresses": [f"127.0.0.1:{port}"],
        "master_id": who.master_id,
        "key_id": who.key_id,
        "secret": who.secret,
        "license_token": who.license_token,
        "outbox_folder": folder / "outbox",
        "plaintext": True,
        "reconnect_seconds_min": 0.01,
        "reconnect_seconds_max": 0.1,
        "refused_seconds_max": 0.2,
        **overrides,
    }
    return MasterSettings(**values)


async def logged(redis_client: Redis) -> dict[int, int]:
    return signals_in(await read_log(redis_client))


@pytest.mark.parametrize("policy", list(FsyncPolicy))
async def test_signals_put_before_and_after_the_login_are_in_the_log_once(
    ingest: Running, redis_client: Redis, tmp_path: Path, policy: FsyncPolicy
) -> None:
    outbox = OutboxSettings(fsync=policy)
    master = Master(settings(ingest.port, tmp_path, outbox=outbox), book=Book())
    early = [master.put(signal(number)) for number in range(1, 4)]
    async with master:
        late = await master.send_many([signal(number) for number in range(4, 504)])
        await master.wait_all_acknowledged(WAIT_SECONDS)
        assert (early, late) == ([1, 2, 3], range(4, 504))
        assert master.acknowledged == (1, 503)
        assert await master.send_many([]) == range(0)
    assert await logged(redis_client) == {number: 1_000 + number for number in range(1, 504)}


async def test_what_was_not_sent_is_sent_by_the_next_process(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    first = Master(settings(ingest.port, tmp_path))
    first.put_many([signal(number) for number in range(1, 6)])
    with pytest.raises(OutboxLockedError):
        Master(settings(ingest.port, tmp_path))
    await first.close()
    with pytest.raises(ClosedError):
        first.put(signal(6))
    async with Master(settings(ingest.port, tmp_path)) as master:
        await master.wait_acknowledged(5, WAIT_SECONDS)
    assert list(await logged(redis_client)) == [1, 2, 3, 4, 5]


async def test_a_refused_signal_is_told_and_the_others_go_on(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    seen: list[MasterEvent] = []
    async with Master(settings(ingest.port, tmp_path), on_event=seen.append) as master:
        stale = signal(2, occurred_at_us=now_us() - HOUR_US)
        sequences = master.put_many([signal(1), stale, signal(3)])
        await master.wait_acknowledged(sequences[2], WAIT_SECONDS)
        with pytest.raises(SignalRefusedError) as caught:
            await master.wait_acknowledged(sequences[1], WAIT_SECONDS)
        await master.wait_all_acknowledged(WAIT_SECONDS)
        assert (caught.value.sequence, caught.value.code) == (2, "STALE")
    assert [(one.sequence, one.code) for one in seen if isinstance(one, SignalRefused)] == [(2, "STALE")]
    assert list(await logged(redis_client)) == [1, 3]


async def test_a_signal_with_a_wrong_field_is_not_taken_at_all(ingest: Running, tmp_path: Path) -> None:
    async with Master(settings(ingest.port, tmp_path)) as master:
        await master.wait_open(WAIT_SECONDS)
        with pytest.raises(SignalInvalidError):
            master.put_many([signal(1), signal(2, symbol="")])
        assert master.last_sequence == 0


async def test_a_wrong_key_is_told_and_the_right_license_is_taken_at_once(
    ingest: Running, masters_ledger: StandInLedger, tmp_path: Path
) -> None:
    wrong = Master(settings(ingest.port, tmp_path / "wrong", secret=b"x" * 32))
    async with wrong:
        with pytest.raises(LoginRefusedError) as caught:
            await wrong.wait_open(WAIT_SECONDS)
        assert caught.value.code == "BAD_MAC"
    async with Master(
        settings(ingest.port, tmp_path, license_token="old", refused_seconds_max=9_999)
    ) as master:
        with pytest.raises(LoginRefusedError):
            await master.wait_open(WAIT_SECONDS)
        master.put(signal(1))
        master.set_license_token(Credentials().license_token)
        await master.wait_acknowledged(1, WAIT_SECONDS)


async def test_a_new_outbox_goes_on_behind_the_log_in_a_new_epoch(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    async with Master(settings(ingest.port, tmp_path)) as master:
        master.put_many([signal(number) for number in range(1, 11)])
        await master.wait_all_acknowledged(WAIT_SECONDS)
    shutil.rmtree(tmp_path / "outbox")
    seen: list[MasterEvent] = []
    again = Master(settings(ingest.port, tmp_path), on_event=seen.append)
    provisional = again.put(signal(11))
    async with again:
        await again.wait_acknowledged(provisional, WAIT_SECONDS)
        assert again.acknowledged == (2, 11)
        assert again.put(signal(12)) == 12
        await again.wait_all_acknowledged(WAIT_SECONDS)
    assert SequencesMoved(0, 1, 10) in seen
    assert await logged(redis_client) == {number: 1_000 + number for number in range(1, 13)}


async def test_a_front_door_that_stops_and_another_one(
    redis_url: str, redis_client: Redis, masters_ledger: StandInLedger, tmp_path: Path
) -> None:
    """Two addresses: one server drains while the master sends, the other takes over."""
    seen: list[MasterEvent] = []
    async with ingest_running(redis_url, masters_ledger.port) as other:
        async with ingest_running(redis_url, masters_ledger.port) as one:
            addresses = [f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}"]
            master = Master(settings(one.port, tmp_path, addresses=addresses), on_event=seen.append)
            await master.start()
            for number in range(1, 101):
                master.put(signal(number))
            await master.wait_acknowledged(50, WAIT_SECONDS)
        for number in range(101, 201):
            master.put(signal(number))
        await master.wait_all_acknowledged(WAIT_SECONDS)
        await master.close()
    assert await logged(redis_client) == {number: 1_000 + number for number in range(1, 201)}


async def test_a_front_door_that_comes_back_is_found_again(
    redis_url: str, redis_client: Redis, masters_ledger: StandInLedger, tmp_path: Path
) -> None:
    async with ingest_running(redis_url, masters_ledger.port) as ingest:
        port = ingest.port
        master = Master(settings(port, tmp_path))
        await master.start()
        await master.wait_open(WAIT_SECONDS)
    master.put_many([signal(number) for number in range(1, 51)])
    assert master.pending == 50
    async with ingest_running(redis_url, masters_ledger.port, bind_address=f"127.0.0.1:{port}"):
        await master.wait_all_acknowledged(WAIT_SECONDS)
        await master.close()
    assert len(await logged(redis_client)) == 50


async def test_two_clients_with_one_identity_give_up_fighting(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    def quick(folder: Path) -> MasterSettings:
        return settings(
            ingest.port, folder, fenced_max=2, reconnect_seconds_max=0.01, refused_seconds_max=0.01
        )

    seen: list[MasterEvent] = []
    one, other = Master(quick(tmp_path / "1"), on_event=seen.append), Master(quick(tmp_path / "2"))
    async with one, other:
        await until(lambda: MasterState.FAILED in (one.state, other.state))
        loser = one if one.state is MasterState.FAILED else other
        with pytest.raises(LoginRefusedError, match="FENCED"):
            await loser.wait_open(WAIT_SECONDS)
        with pytest.raises(LoginRefusedError):
            await loser.wait_acknowledged(99, WAIT_SECONDS)


async def test_snapshots_are_made_of_the_book_and_stored(ingest: Running, tmp_path: Path) -> None:
    seen: list[MasterEvent] = []
    quick = settings(ingest.port, tmp_path, snapshot_every_signals=5, snapshot_seconds_min=0)
    async with Master(quick, book=Book(), on_event=seen.append) as master:
        master.put_many([signal(number) for number in range(1, 8)])
        await until(lambda: any(isinstance(one, SnapshotStored) and one.sequence == 7 for one in seen))
        master.put(signal(8))
        master.send_snapshot()
        await until(lambda: any(isinstance(one, SnapshotStored) and one.sequence == 8 for one in seen))
        stored = master.stats.snapshots
        assert stored >= 2


async def test_a_snapshot_function_that_fails_stops_nothing(ingest: Running, tmp_path: Path) -> None:
    def broken():
        raise ZeroDivisionError

    async with Master(settings(ingest.port, tmp_path), snapshot=broken) as master:
        master.send_snapshot()
        master.put(signal(1))
        await master.wait_all_acknowledged(WAIT_SECONDS)
        assert master.stats.snapshots == 0


async def test_over_tls_with_a_certificate_of_our_own_authority(
    redis_url: str, masters_ledger: StandInLedger, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, ca = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(ca))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    seen: list[MasterEvent] = []
    files = {"tls_certificate_file": certificate, "tls_key_file": key}
    async with ingest_running(redis_url, masters_ledger.port, **files) as ingest:
        trusting = settings(ingest.port, tmp_path, plaintext=False, ca_file=ca)
        async with Master(trusting, on_event=seen.append) as master:
            master.put(signal(1))
            await master.wait_acknowledged(1, WAIT_SECONDS)
        distrusting = settings(
            ingest.port, tmp_path / "2", plaintext=False, ca_file=tmp_path / "stranger.pem"
        )
        async with Master(distrusting, on_event=seen.append):
            await until(lambda: any(isinstance(one, Disconnected) for one in seen))
    assert any(isinstance(one, SessionOpened) and one.address.endswith(str(ingest.port)) for one in seen)
    assert "CERTIFICATE_VERIFY_FAILED" in next(one.reason for one in seen if isinstance(one, Disconnected))


async def test_a_plain_thread_sends_without_waiting_for_the_network(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    def trade() -> None:
        with MasterThread(settings(ingest.port, tmp_path), book=Book()) as master:
            master.wait_open(WAIT_SECONDS)
            threads = [
                threading.Thread(
                    target=lambda start=start: [master.send(signal(start + n)) for n in range(50)]
                )
                for start in (0, 1_000)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert master.send_many([signal(2_000), signal(2_001)]) == range(101, 103)
            master.send_snapshot()
            master.wait_acknowledged(102, WAIT_SECONDS)
            master.wait_all_acknowledged(WAIT_SECONDS)
            assert (master.acknowledged, master.pending, master.last_sequence) == ((1, 102), 0, 102)
            assert master.state is MasterState.OPEN
            assert master.stats.put == 102
            assert abs(master.server_time_us() - now_us()) < HOUR_US
            master.set_license_token("another")
        master.close()
        with pytest.raises(ClosedError):
            master.send(signal(9))

    await asyncio.to_thread(trade)
    found = await logged(redis_client)
    assert sorted(found) == list(range(1, 103))
    assert len(set(found.values())) == 102


@pytest.mark.parametrize("policy", [FsyncPolicy.INTERVAL, FsyncPolicy.NEVER])
async def test_a_disk_that_stalls_holds_up_neither_the_thread_that_trades_nor_what_it_sent(
    ingest: Running,
    redis_client: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: FsyncPolicy,
) -> None:
    go_on, waited_by, fsync = threading.Event(), set(), os.fsync

    def stalled(descriptor: int) -> None:
        waited_by.add(threading.current_thread().name)
        assert go_on.wait(60)
        fsync(descriptor)

    def trade() -> None:
        outbox = OutboxSettings(fsync=policy, segment_bytes=65_535, bytes_max=1 << 20)
        with MasterThread(settings(ingest.port, tmp_path, outbox=outbox), book=Book()) as master:
            master.wait_open(WAIT_SECONDS)
            monkeypatch.setattr(os, "fsync", stalled)
            try:
                # Several files long.
                for number in range(1, 3_001):
                    master.send(signal(number))
                master.wait_acknowledged(3_000, WAIT_SECONDS)
            finally:
                go_on.set()
                monkeypatch.undo()

    await asyncio.to_thread(trade)
    assert len(await logged(redis_client)) == 3_000
    trading = {name for name in waited_by if not name.startswith("asyncio_")}
    assert trading == set(), "these waited for the disk"


async def test_a_thread_that_cannot_open_its_outbox_says_so(ingest: Running, tmp_path: Path) -> None:
    async with Master(settings(ingest.port, tmp_path)) as master:
        await master.wait_open(WAIT_SECONDS)
        with pytest.raises(OutboxLockedError):
            await asyncio.to_thread(MasterThread, settings(ingest.port, tmp_path))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x02\xff\xff"])
async def test_what_is_no_front_door_is_left_and_closing_does_not_wait_for_it(
    tmp_path: Path, answer: bytes
) -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    seen: list[MasterEvent] = []
    quick = settings(port, tmp_path, login_timeout_seconds=0.05)
    async with server, Master(quick, on_event=seen.append) as master:
        master.put(signal(1))
        await until(lambda: len([one for one in seen if isinstance(one, Disconnected)]) >= 2)
        assert master.pending == 1
        # However long a goodbye might take: nobody listens, so none is said.
        await until(lambda: connections)


async def test_nobody_at_the_address_is_a_reason_to_try_again(tmp_path: Path) -> None:
    seen: list[MasterEvent] = []
    async with Master(settings(1, tmp_path), on_event=seen.append) as master:
        await until(lambda: len(seen) >= 2)
        with pytest.raises(TimeoutError):
            await master.wait_open(0.01)
        with pytest.raises(ClosedError):
            await master.start()
    assert all(isinstance(one, Disconnected) and "127.0.0.1:1" in one.reason for one in seen)


async def test_signals_without_a_time_get_the_servers(ingest: Running, tmp_path: Path) -> None:
    async with Master(settings(ingest.port, tmp_path)) as master:
        await master.wait_open(WAIT_SECONDS)
        one = signal_pb2.Signal(kind=signal_pb2.SIGNAL_KIND_CLOSE, position_id=1, symbol="EURUSD")
        master.put(one)
        assert abs(one.occurred_at_us - now_us()) < HOUR_US
        await master.wait_all_acknowledged(WAIT_SECONDS)
