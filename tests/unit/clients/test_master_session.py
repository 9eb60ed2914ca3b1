"""The master's protocol machine: login, sending, heartbeats, ends."""

from __future__ import annotations

import pytest

from ecp_client.master import events
from ecp_client.master.endings import OUTBOX_BEHIND, Outlook
from ecp_client.master.handshake import Resume
from ecp_client.master.session import SessionLimits, SessionState
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from tests.unit.clients.front_door_peer import (
    CLIENT_NONCE,
    HEARTBEAT_MS,
    SECRET,
    SERVER_NONCE,
    SERVER_TIME_US,
    Peer,
    mac,
    payloads,
)

NONCES = CLIENT_NONCE + SERVER_NONCE


@pytest.fixture
def peer() -> Peer:
    return Peer().open()


class TestLogin:
    def test_hello_names_master_and_key(self) -> None:
        (frame,) = Peer().received()
        assert (frame.hello.version, frame.hello.master_id, frame.hello.key_id) == (1, 7, "key-1")
        assert frame.hello.nonce == CLIENT_NONCE

    def test_login_is_signed_over_label_nonces_and_body(self) -> None:
        peer = Peer(Resume(2, 40, 45, False))
        peer.received()
        peer.challenge()
        (frame,) = peer.received()
        assert frame.login.mac == mac(SECRET, b"login", NONCES, frame.login.body)
        body = pb.LoginBody.FromString(frame.login.body)
        assert (body.version, body.master_id, body.license_token) == (1, 7, "license")
        assert (body.acknowledged.epoch, body.acknowledged.sequence) == (2, 40)
        assert not body.begin_epoch

    def test_a_first_login_shows_no_position(self) -> None:
        peer = Peer()
        peer.received()
        peer.challenge()
        body = pb.LoginBody.FromString(peer.received()[0].login.body)
        assert not body.HasField("acknowledged")

    def test_welcome_says_where_to_go_on(self) -> None:
        peer = Peer(Resume(1, 40, 45, False))
        peer.challenge()
        peer.welcome(1, 42)
        (opened,) = peer.events()
        assert isinstance(opened, events.SessionOpened)
        assert (opened.epoch, opened.sequence, opened.new_epoch) == (1, 42, False)
        assert peer.session.next_sequence == 43

    def test_another_epoch_is_told(self) -> None:
        peer = Peer(Resume(1, 40, 45, False))
        peer.challenge()
        peer.welcome(2, 40)
        (opened,) = peer.events()
        assert isinstance(opened, events.SessionOpened)
        assert opened.new_epoch

    def test_a_log_ahead_of_the_outbox_asks_for_a_login_that_begins_an_epoch(self) -> None:
        peer = Peer(Resume(0, 0, 0, False))
        peer.challenge()
        peer.welcome(1, 500)
        assert peer.session.end is not None
        assert (peer.session.end.outlook, peer.session.end.code) == (Outlook.AGAIN, OUTBOX_BEHIND)

    def test_with_a_begun_epoch_a_log_ahead_is_fine(self) -> None:
        peer = Peer(Resume(0, 0, 0, True))
        peer.received()
        peer.challenge()
        assert pb.LoginBody.FromString(peer.received()[0].login.body).begin_epoch
        peer.welcome(2, 500)
        assert peer.session.end is None
        assert peer.session.next_sequence == 501

    def test_the_servers_clock_is_learnt_from_the_challenge(self) -> None:
        peer = Peer()
        peer.pass_time(10)
        peer.challenge(server_time_us=SERVER_TIME_US + 3_600_000_000)
        assert peer.clock.at(peer.now_us) == SERVER_TIME_US + 3_600_000_000 + 5_000

    def test_another_version_is_the_end(self) -> None:
        peer = Peer()
        peer.challenge(version=2)
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.FATAL

    @pytest.mark.parametrize("nonce", [b"", b"short", CLIENT_NONCE])
    def test_a_bad_or_reflected_nonce_ends_the_session(self, nonce: bytes) -> None:
        peer = Peer()
        peer.received()
        peer.challenge(nonce=nonce)
        assert peer.session.end is not None
        assert peer.received() == []

    @pytest.mark.parametrize(
        ("code", "outlook"),
        [
            (pb.REJECT_CODE_BAD_MAC, Outlook.REFUSED),
            (pb.REJECT_CODE_UNAUTHENTICATED, Outlook.REFUSED),
            (pb.REJECT_CODE_LICENSE_EXPIRED, Outlook.REFUSED),
            (pb.REJECT_CODE_LICENSE_REVOKED, Outlook.REFUSED),
            (pb.REJECT_CODE_UNSUPPORTED_VERSION, Outlook.FATAL),
            (pb.REJECT_CODE_MALFORMED, Outlook.REFUSED),
            (pb.REJECT_CODE_TOO_LARGE, Outlook.REFUSED),
            (pb.REJECT_CODE_TOO_MANY_CONNECTIONS, Outlook.RETRY),
            (pb.REJECT_CODE_UNAVAILABLE, Outlook.RETRY),
            (pb.REJECT_CODE_FENCED, Outlook.FENCED),
        ],
    )
    def test_each_refusal_of_a_login_has_its_outlook(
        self, code: pb.RejectCode.ValueType, outlook: Outlook
    ) -> None:
        peer = Peer()
        peer.challenge()
        peer.reject(code, retry_after_ms=250)
        assert peer.session.end is not None
        assert peer.session.end.outlook is outlook
        assert peer.session.end.code == pb.RejectCode.Name(code).removeprefix("REJECT_CODE_")
        assert peer.session.end.wait_ms == 250

    def test_no_answer_in_time_ends_the_session(self) -> None:
        peer = Peer(limits=SessionLimits(login_us_max=1_000_000))
        assert peer.session.deadline_us == peer.now_us + 1_000_000
        peer.pass_time(1_000)
        peer.session.tick(peer.now_us)
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.RETRY

    def test_frames_out_of_turn_end_the_session(self) -> None:
        peer = Peer()
        peer.welcome()
        assert peer.session.end is not None

    def test_an_ack_before_the_login_ends_the_session(self) -> None:
        peer = Peer()
        peer.ack(1)
        assert peer.session.end is not None


class TestSending:
    def test_a_batch_holds_the_signals_as_they_were_serialized_and_is_signed(self, peer: Peer) -> None:
        sent = payloads(1, 3)
        peer.session.send_signals(sent, peer.now_us)
        (frame,) = peer.received()
        key = mac(SECRET, b"session", NONCES)
        assert frame.signals.mac == mac(key, frame.signals.body)
        batch = pb.SignalBatch.FromString(frame.signals.body)
        assert batch.first_sequence == 1
        assert batch.sent_at_us == peer.clock.at(peer.now_us)
        assert [one.SerializeToString() for one in batch.signals] == sent

    def test_the_window_bounds_what_is_under_way(self) -> None:
        peer = Peer().open(window=10)
        assert peer.session.room(peer.now_us) == 10
        peer.send_signals(4)
        assert peer.session.room(peer.now_us) == 6
        peer.ack(3, credits=5)
        assert peer.session.room(peer.now_us) == 4

    def test_no_credits_means_wait_for_the_next_ack(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.ack(2, credits=0)
        assert peer.session.room(peer.now_us) == 0
        peer.ack(2, credits=7)
        assert peer.session.room(peer.now_us) == 7

    def test_acks_are_cumulative_and_told_once(self, peer: Peer) -> None:
        for _ in range(3):
            peer.send_signals(2)
        peer.ack(4)
        peer.ack(4)
        assert peer.events() == [events.Acknowledged(1, 4, 1)]
        assert peer.session.in_flight == 1

    def test_an_ack_of_what_was_never_sent_ends_the_session(self, peer: Peer) -> None:
        peer.ack(9)
        assert peer.session.end is not None

    def test_a_gap_fill_is_signed_with_its_own_key_and_split_when_large(self, peer: Peer) -> None:
        peer.session.send_gap_fill(2_500_000, position_pb2.GAP_REASON_MASTER_LOST, "gone", peer.now_us)
        sent = peer.received()
        key = mac(SECRET, b"gapfill", NONCES)
        assert all(one.gap_fill.mac == mac(key, one.gap_fill.body) for one in sent)
        bodies = [pb.GapFillBody.FromString(one.gap_fill.body) for one in sent]
        spans = [(body.from_sequence, body.to_sequence) for body in bodies]
        assert spans == [(1, 1_000_000), (1_000_001, 2_000_000), (2_000_001, 2_500_000)]
        assert {body.reason for body in bodies} == {position_pb2.GAP_REASON_MASTER_LOST}

    def test_a_snapshot_waits_until_what_it_contains_is_under_way(self, peer: Peer) -> None:
        snapshot = snapshot_pb2.Snapshot(master_id=7, taken_at_us=1, account_mode=1)
        snapshot.as_of.sequence = 2
        assert not peer.session.takes_snapshot(snapshot)
        peer.send_signals(2)
        assert peer.session.takes_snapshot(snapshot)
        peer.received()
        peer.session.send_snapshot(snapshot, peer.now_us)
        (frame,) = peer.received()
        key = mac(SECRET, b"snapshot", NONCES)
        assert frame.snapshot.mac == mac(key, frame.snapshot.body)
        peer.ack(2, snapshot_sequence=2)
        assert events.SnapshotStored(2) in peer.events()

    def test_a_refused_snapshot_is_told(self, peer: Peer) -> None:
        snapshot = snapshot_pb2.Snapshot(master_id=7)
        peer.session.send_snapshot(snapshot, peer.now_us)
        peer.reject(pb.REJECT_CODE_RATE_LIMITED)
        assert peer.events() == [events.SnapshotRefused("RATE_LIMITED", "told to")]
        assert peer.session.end is None

    def test_a_snapshot_that_is_too_large_is_not_sent(self) -> None:
        peer = Peer().open(frame_bytes_max=100)
        snapshot = snapshot_pb2.Snapshot(currency="X" * 200)
        peer.session.send_snapshot(snapshot, peer.now_us)
        assert peer.received() == []
        (event,) = peer.events()
        assert isinstance(event, events.SnapshotRefused)
        assert event.code == "TOO_LARGE"


class TestHeartbeats:
    def test_a_silent_client_pings(self, peer: Peer) -> None:
        peer.pass_time(HEARTBEAT_MS // 2)
        assert peer.session.deadline_us == peer.now_us
        peer.session.tick(peer.now_us)
        (frame,) = peer.received()
        assert frame.HasField("ping")

    def test_a_busy_client_does_not(self, peer: Peer) -> None:
        peer.pass_time(HEARTBEAT_MS // 2 - 1)
        peer.send_signals(1)
        peer.received()
        peer.pass_time(1)
        peer.session.tick(peer.now_us)
        assert peer.received() == []

    def test_a_pong_corrects_the_clock(self, peer: Peer) -> None:
        peer.pass_time(HEARTBEAT_MS // 2)
        peer.session.tick(peer.now_us)
        (frame,) = peer.received()
        server_time_us = SERVER_TIME_US + 9_000_000
        peer.send(pong=pb.Pong(id=frame.ping.id, time_us=server_time_us))
        assert peer.clock.at(peer.now_us) == server_time_us

    def test_a_ping_is_answered(self, peer: Peer) -> None:
        peer.send(ping=pb.Ping(id=5))
        (frame,) = peer.received()
        assert (frame.pong.id, frame.pong.time_us) == (5, peer.clock.at(peer.now_us))

    def test_a_silent_server_is_given_up(self, peer: Peer) -> None:
        peer.pass_time(3 * HEARTBEAT_MS)
        peer.session.tick(peer.now_us)
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.RETRY


class TestEnds:
    def test_a_drain_finishes_what_is_under_way_and_leaves(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.received()
        peer.send(drain=pb.Drain(reconnect_after_ms=700))
        assert peer.events() == [events.Draining(700)]
        assert peer.session.room(peer.now_us) == 0
        assert peer.session.end is None
        peer.ack(2)
        assert peer.session.end is not None
        assert (peer.session.end.outlook, peer.session.end.wait_ms) == (Outlook.AGAIN, 700)
        assert peer.received()[-1].HasField("bye")

    def test_a_drain_with_nothing_under_way_leaves_at_once(self, peer: Peer) -> None:
        peer.send(drain=pb.Drain(reconnect_after_ms=5))
        assert peer.session.end is not None

    def test_frames_refused_because_of_a_drain_stay_in_the_outbox(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_DRAINING, 1, retry_after_ms=50)
        assert peer.session.end is not None
        assert (peer.session.end.code, peer.session.end.wait_ms) == ("DRAINING", 50)

    def test_a_lost_connection_during_a_drain_is_no_failure(self, peer: Peer) -> None:
        peer.send_signals(1)
        peer.send(drain=pb.Drain(reconnect_after_ms=5))
        peer.session.connection_lost("gone")
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.AGAIN

    def test_a_goodbye_of_the_server_means_connect_again(self, peer: Peer) -> None:
        peer.send(bye=pb.Bye(reason="the log lost acknowledged signals"))
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.RETRY
        assert "lost" in peer.session.end.reason

    def test_the_client_says_goodbye(self, peer: Peer) -> None:
        peer.session.say_bye("closing")
        assert peer.received()[0].bye.reason == "closing"

    @pytest.mark.parametrize(
        "data", [b"\x00\x00\x00\x00", b"HTTP/1.1 400 Bad Request", b"\x00\x00\x00\x02\xff\xff"]
    )
    def test_bytes_that_are_no_frames_end_the_session(self, peer: Peer, data: bytes) -> None:
        peer.session.receive_data(data, peer.now_us)
        assert peer.session.end is not None
        assert peer.session.state is SessionState.CLOSED

    def test_a_server_frame_of_a_later_version_is_passed_over(self, peer: Peer) -> None:
        peer.session.receive_data(b"\x00\x00\x00\x03\xd2\x05\x00", peer.now_us)
        assert peer.session.end is None
        peer.send_signals(1)
        peer.ack(1)
        assert peer.session.acknowledged == 1

    def test_frames_may_come_byte_by_byte(self) -> None:
        peer = Peer()
        frame = pb.ServerFrame(challenge=pb.Challenge(nonce=SERVER_NONCE, version=1)).SerializeToString()
        for byte in len(frame).to_bytes(4, "big") + frame:
            peer.session.receive_data(bytes((byte,)), peer.now_us)
        assert peer.session.state is SessionState.LOGIN

    def test_a_snapshot_request_is_told(self, peer: Peer) -> None:
        peer.send(snapshot_request=pb.SnapshotRequest(reason="a gap"))
        assert peer.events() == [events.SnapshotRequested("a gap")]
