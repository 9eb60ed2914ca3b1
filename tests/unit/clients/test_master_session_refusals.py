"""The master's protocol machine: going back to what was refused, and what is void behind it."""

from __future__ import annotations

import pytest

from ecp_client.master import events
from ecp_client.master.endings import Outlook
from execution.common.v1 import position_pb2
from execution.ingest.v1 import frames_pb2 as pb
from tests.unit.clients.front_door_peer import (
    CLIENT_NONCE,
    SERVER_NONCE,
    Peer,
)

NONCES = CLIENT_NONCE + SERVER_NONCE


@pytest.fixture
def peer() -> Peer:
    return Peer().open()


class TestGoingBack:
    def test_a_signal_refused_for_good_is_declared_and_what_follows_goes_on(self, peer: Peer) -> None:
        for _ in range(3):
            peer.send_signals(2)
        peer.received()
        peer.reject(pb.REJECT_CODE_STALE, 2)
        assert peer.events() == [events.SignalRefused(2, "STALE", "", "told to")]
        (gap,) = peer.gap_fills()
        assert (gap.from_sequence, gap.to_sequence) == (2, 2)
        assert gap.reason == position_pb2.GAP_REASON_REJECTED
        assert peer.session.next_sequence == 3

    def test_the_field_of_an_invalid_signal_is_told(self, peer: Peer) -> None:
        peer.send_signals(1)
        peer.reject(pb.REJECT_CODE_INVALID_SIGNAL, 1, field="symbol")
        assert peer.events() == [events.SignalRefused(1, "INVALID_SIGNAL", "symbol", "told to")]

    def test_gaps_of_what_was_under_way_behind_are_passed_over(self, peer: Peer) -> None:
        for _ in range(3):
            peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_STALE, 2)
        peer.send_signals(4)
        peer.reject(pb.REJECT_CODE_GAP, 3, expected=2)
        peer.reject(pb.REJECT_CODE_GAP, 5, expected=2)
        assert peer.session.next_sequence == 7
        peer.ack(6)
        assert peer.session.acknowledged == 6
        assert peer.session.in_flight == 0
        assert peer.session.end is None

    def test_any_other_refusal_of_a_void_frame_is_passed_over_too(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_UNAVAILABLE, 1)
        peer.events()
        peer.reject(pb.REJECT_CODE_UNAVAILABLE, 3)
        assert peer.events() == []
        assert peer.session.next_sequence == 1

    def test_void_frames_that_are_taken_after_all_count(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_UNAVAILABLE, 1)
        peer.ack(4)
        assert peer.session.next_sequence == 5
        assert peer.session.in_flight == 0

    def test_two_refusals_one_behind_the_other(self, peer: Peer) -> None:
        for _ in range(3):
            peer.send_signals(1)
        peer.reject(pb.REJECT_CODE_STALE, 1)
        peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_GAP, 2, expected=1)
        peer.reject(pb.REJECT_CODE_GAP, 3, expected=1)
        peer.ack(1)
        peer.reject(pb.REJECT_CODE_STALE, 2)
        assert peer.session.next_sequence == 3
        refused = [event.sequence for event in peer.events() if isinstance(event, events.SignalRefused)]
        assert refused == [1, 2]

    def test_the_head_of_a_refused_batch_may_be_refused_later(self, peer: Peer) -> None:
        """The log fails before it has the head: the batch gets a second Reject, and what is behind it a GAP each."""
        peer.send_signals(4)
        peer.reject(pb.REJECT_CODE_STALE, 3)
        peer.send_signals(2)
        peer.reject(pb.REJECT_CODE_UNAVAILABLE, 1)
        peer.reject(pb.REJECT_CODE_GAP, 3, expected=1)
        peer.reject(pb.REJECT_CODE_GAP, 4, expected=1)
        assert peer.session.end is None
        assert (peer.session.next_sequence, peer.session.in_flight) == (1, 0)

    def test_a_real_gap_goes_back_to_the_expected_sequence(self, peer: Peer) -> None:
        peer.send_signals(2)
        peer.ack(2)
        peer.send_signals(4)
        peer.reject(pb.REJECT_CODE_GAP, 5, expected=4)
        assert peer.session.next_sequence == 4

    def test_a_log_with_less_than_it_acknowledged_asks_for_a_new_login(self, peer: Peer) -> None:
        peer.send_signals(4)
        peer.ack(4)
        peer.send_signals(1)
        peer.reject(pb.REJECT_CODE_GAP, 5, expected=3)
        assert peer.session.end is not None
        assert peer.session.end.outlook is Outlook.AGAIN

    @pytest.mark.parametrize(
        "code",
        [pb.REJECT_CODE_RATE_LIMITED, pb.REJECT_CODE_WINDOW_EXCEEDED, pb.REJECT_CODE_UNAVAILABLE],
    )
    def test_a_held_back_signal_is_sent_again_after_the_wait(
        self, peer: Peer, code: pb.RejectCode.ValueType
    ) -> None:
        peer.send_signals(3)
        peer.reject(code, 2, retry_after_ms=100)
        (held,) = peer.events()
        assert isinstance(held, events.Held)
        assert held.wait_ms == 100
        assert peer.session.room(peer.now_us) == 0
        assert peer.session.deadline_us == peer.now_us + 100_000
        peer.pass_time(100)
        assert peer.session.next_sequence == 2
        assert peer.session.room(peer.now_us) > 0

    def test_repeated_holds_wait_longer_until_something_is_acknowledged(self, peer: Peer) -> None:
        waits = []
        for _ in range(3):
            peer.send_signals(1)
            peer.reject(pb.REJECT_CODE_UNAVAILABLE, 1)
            (held,) = peer.events()
            assert isinstance(held, events.Held)
            waits.append(held.wait_ms)
            peer.pass_time(held.wait_ms)
            assert peer.session.room(peer.now_us)
        assert waits == [20, 40, 80]

    def test_a_refusal_of_what_is_not_under_way_ends_the_session(self, peer: Peer) -> None:
        peer.reject(pb.REJECT_CODE_STALE, 5)
        assert peer.session.end is not None

    def test_a_refused_gap_fill_ends_the_session(self, peer: Peer) -> None:
        peer.session.send_gap_fill(3, position_pb2.GAP_REASON_REJECTED, "", peer.now_us)
        peer.reject(pb.REJECT_CODE_INVALID_SIGNAL, 1)
        assert peer.session.end is not None

    @pytest.mark.parametrize(
        ("code", "outlook"),
        [
            (pb.REJECT_CODE_CONFLICT, Outlook.FATAL),
            (pb.REJECT_CODE_FENCED, Outlook.FENCED),
            (pb.REJECT_CODE_LICENSE_REVOKED, Outlook.REFUSED),
            (pb.REJECT_CODE_BAD_MAC, Outlook.REFUSED),
        ],
    )
    def test_refusals_that_close_an_open_session(
        self, peer: Peer, code: pb.RejectCode.ValueType, outlook: Outlook
    ) -> None:
        peer.send_signals(1)
        peer.reject(code, 1)
        assert peer.session.end is not None
        assert peer.session.end.outlook is outlook

    def test_a_code_of_a_later_version_refuses_the_signal_for_good(self, peer: Peer) -> None:
        peer.send_signals(1)
        peer.send(reject=pb.Reject(sequence=1, code=99, expected_sequence=1))
        assert peer.events() == [events.SignalRefused(1, "CODE_99", "", "")]
