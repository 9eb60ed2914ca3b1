"""The Python client says, byte by byte, what docs/protocol.md prints, and understands what it prints of the server."""

from __future__ import annotations

import pytest

from ecp_client.clock import ServerClock
from ecp_client.master import events
from ecp_client.master.frames import login_mac, session_keys
from ecp_client.master.handshake import Identity, Resume
from ecp_client.master.session import MasterSession
from execution.common.v1 import position_pb2
from tests.contract.ingest.vectors import (
    CLIENT_NONCE,
    KEY_ID,
    LICENSE_TOKEN,
    MASTER_ID,
    SECRET,
    SERVER_NONCE,
    documented,
    signals,
    snapshot,
)

VECTORS = documented()


@pytest.fixture
def session() -> MasterSession:
    identity = Identity(MASTER_ID, KEY_ID, SECRET, LICENSE_TOKEN, "example 1.0")
    return MasterSession(identity, Resume(1, 7, 7, False), ServerClock(0, 0), 0, CLIENT_NONCE)


@pytest.fixture
def opened(session: MasterSession) -> MasterSession:
    for name in ("challenge", "welcome"):
        session.receive_data(VECTORS[name], 0)
    session.data_to_send()
    session.take_events()
    return session


def test_hello_and_login(session: MasterSession) -> None:
    assert session.data_to_send() == VECTORS["hello"]
    session.receive_data(VECTORS["challenge"], 0)
    assert session.data_to_send() == VECTORS["login"]


def test_the_welcome(session: MasterSession) -> None:
    session.receive_data(VECTORS["challenge"] + VECTORS["welcome"], 0)
    (event,) = session.take_events()
    assert event == events.SessionOpened("", 1_800_000_000_123, 1, 7, position_pb2.DURABILITY_APPENDED, False)
    assert (session.next_sequence, session.room(0), session.batch_signals_max) == (8, 4_096, 512)
    assert session.welcome.snapshot_wanted


def test_signals_gap_fill_and_snapshot(opened: MasterSession) -> None:
    # The challenge set the clock at 0, and the example was sent a millisecond later.
    opened.send_signals([one.SerializeToString() for one in signals()], 1_000)
    assert opened.data_to_send() == VECTORS["signals"]
    opened.send_gap_fill(11, position_pb2.GAP_REASON_REJECTED, "stale", 1_000)
    assert opened.data_to_send() == VECTORS["gapfill"]
    opened.send_snapshot(snapshot(), 1_000)
    assert opened.data_to_send() == VECTORS["snapshot"]


def test_what_the_server_answers(opened: MasterSession) -> None:
    opened.send_signals([one.SerializeToString() for one in (*signals(), *signals())], 1_000)
    opened.send_snapshot(snapshot(), 1_000)
    for name in ("ack", "ack-of-snapshot", "snapshot-request", "reject", "pong"):
        opened.receive_data(VECTORS[name], 2_000)
    assert opened.take_events() == [
        events.Acknowledged(1, 9, position_pb2.DURABILITY_APPENDED),
        events.SnapshotStored(9),
        events.SnapshotRequested("old"),
        events.SignalRefused(10, "INVALID_SIGNAL", "price_e8", "price_e8 must not be negative"),
    ]
    assert opened.end is None
    opened.receive_data(VECTORS["drain"], 2_000)
    assert opened.take_events() == [events.Draining(1_500)]


def test_heartbeats_and_the_end(opened: MasterSession) -> None:
    opened.tick(2_500_000)
    assert opened.data_to_send() == VECTORS["ping"]
    opened.receive_data(VECTORS["pong"], 2_600_000)
    assert opened.end is None
    opened.say_bye("")
    assert opened.data_to_send() == VECTORS["bye"]


@pytest.mark.parametrize("length", [20, 64, 131])
def test_keys_of_all_lengths(length: int) -> None:
    secret = b"\xaa" * length
    proof = login_mac(secret, CLIENT_NONCE, SERVER_NONCE, VECTORS["login-body"])
    assert proof == VECTORS[f"secret-{length}-login-mac"]
    assert session_keys(secret, CLIENT_NONCE, SERVER_NONCE).signals == VECTORS[f"secret-{length}-key-session"]


def test_the_keys_of_each_kind_of_body() -> None:
    keys = session_keys(SECRET, CLIENT_NONCE, SERVER_NONCE)
    assert keys.signals == VECTORS["key-session"]
    assert keys.snapshot == VECTORS["key-snapshot"]
    assert keys.gap_fill == VECTORS["key-gapfill"]
