"""The subscriber's stream machine: where it begins, duplicates, gaps and full syncs."""

from __future__ import annotations

import pytest

from ecp_client.positions import BEGINNING
from ecp_client.subscriber.events import Degraded, GapSeen, StateChanged, SyncState
from ecp_client.subscriber.session import (
    Moved,
    SnapshotReceived,
    SubscriberSession,
    WithheldAgain,
)
from ecp_client.subscriber.track import Start, Track
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.unit.clients.fed_session import Fed, P, sequenced, stream_position


class TestBeginning:
    @pytest.mark.parametrize(
        ("start", "kind"),
        [(Start.BEGINNING, "after"), (Start.SNAPSHOT, "from_snapshot"), (Start.NOW, "from_now")],
    )
    def test_each_start_asks_its_own_way(self, start: Start, kind: str) -> None:
        request = Fed(start).request
        assert request.client == "a test"
        assert request.masters[0].WhichOneof("start") == kind

    def test_a_known_position_is_resumed_after(self) -> None:
        request = Fed(Start.SNAPSHOT, P(2, 9)).request
        assert request.masters[0].after == stream_position(P(2, 9))

    def test_from_the_beginning_the_first_signal_follows_nothing(self) -> None:
        assert Fed(Start.BEGINNING).run(1, 3) == [1, 2, 3]

    def test_from_now_the_first_signal_says_behind_what(self) -> None:
        fed = Fed(Start.NOW)
        assert fed.run(41, 42) == [41, 42]
        assert fed.track.state is SyncState.SYNCED

    def test_from_now_progress_says_where_that_is(self) -> None:
        fed = Fed(Start.NOW)
        assert fed.progress(P(1, 40)) == [Moved(1, BEGINNING, P(1, 40))]
        assert fed.run(41, 41) == [41]

    def test_with_no_masters_named_the_server_says_who(self) -> None:
        session = SubscriberSession([])
        assert not session.request().masters
        progress = pb.Progress()
        progress.positions.add(master_id=5, position=P(1, 2).to_pb())
        session.take(pb.SubscribeResponse(progress=progress))
        session.take_signals(pb.Signals(signals=[sequenced(9, master_id=6)]))
        session.stream_ended()
        assert [one.master_id for one in session.request().masters] == [5, 6]

    def test_progress_of_somebody_else_is_ignored(self) -> None:
        fed = Fed()
        assert fed.progress(P(1, 2), master_id=9) == []
        assert list(fed.session.tracks) == [1]

    def test_a_master_without_snapshots_is_followed_from_now_in_the_end(self) -> None:
        fed = Fed(Start.SNAPSHOT)
        kinds = [fed.again().WhichOneof("start") for _ in range(4)]
        assert kinds == ["from_snapshot", "from_snapshot", "from_now", "from_now"]
        fed.run(5, 5)
        assert not fed.track.degraded


class TestSignals:
    def test_what_came_before_is_passed_over_and_counted(self) -> None:
        fed = Fed()
        fed.run(1, 3)
        assert fed.run(2, 5) == [4, 5]
        assert fed.session.duplicates == 2

    def test_signals_of_several_masters_in_one_message(self) -> None:
        session = SubscriberSession([Track(1, Start.BEGINNING), Track(2, Start.BEGINNING)])
        session.request()
        mixed = [
            sequenced(1),
            sequenced(2),
            sequenced(1, master_id=2),
            sequenced(3),
            sequenced(2, master_id=2),
        ]
        delivery = session.take_signals(pb.Signals(signals=mixed))
        assert [(one.master_id, one.sequence) for one in delivery.fresh] == [
            (1, 1), (1, 2), (2, 1), (1, 3), (2, 2),
        ]  # fmt: skip

    def test_a_signal_behind_a_declared_hole_follows_by_its_previous(self) -> None:
        fed = Fed()
        fed.run(1, 2)
        assert fed.signals(sequenced(5, previous=P(1, 2))).fresh

    def test_a_jump_is_told_and_the_stream_asked_for_anew_from_the_same_place(self) -> None:
        fed = Fed()
        fed.run(1, 2)
        delivery = fed.signals(sequenced(5), sequenced(6))
        assert delivery.fresh == []
        assert delivery.gaps == [GapSeen(1, P(1, 3), P(1, 4), "UNEXPLAINED", P(1, 2))]
        assert fed.session.wants_new_stream
        assert fed.again().after == stream_position(P(1, 2))
        assert fed.run(3, 6) == [3, 4, 5, 6]
        assert not fed.track.degraded

    def test_a_second_jump_at_the_same_place_asks_for_a_full_sync(self) -> None:
        fed = Fed()
        fed.run(1, 2)
        fed.run(5, 5)
        fed.again()
        fed.run(5, 5)
        assert fed.track.degraded
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_a_signal_that_says_that_what_is_held_never_was_is_not_taken(self) -> None:
        fed = Fed(Start.BEGINNING)
        fed.run(1, 5)
        delivery = fed.signals(sequenced(10, previous=P(1, 3)), sequenced(11))
        assert [(gap.first, gap.last) for gap in delivery.gaps] == [(P(1, 6), P(1, 9))]
        assert delivery.fresh == []
        assert fed.session.wants_new_stream
        assert fed.again().after == stream_position(P(1, 5))

    def test_what_is_said_about_masters_that_were_not_asked_for_is_passed_over(self) -> None:
        fed = Fed(Start.BEGINNING)
        delivery = fed.signals(sequenced(1, master_id=7), sequenced(1), sequenced(2, master_id=7))
        assert [one.master_id for one in delivery.fresh] == [1]
        gap = pb.Gap(master_id=7, resume_after=P(1, 9).to_pb())
        snapshot = snapshot_pb2.Snapshot(master_id=7, as_of=P(1, 9).to_pb())
        change = pb.StateChange(master_id=7, state=pb.SUBSCRIPTION_STATE_CANCELLED)
        for response in (
            pb.SubscribeResponse(gap=gap),
            pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot)),
            pb.SubscribeResponse(state_change=change),
        ):
            assert fed.session.take(response) == []
        assert list(fed.session.tracks) == [1]
        assert not fed.session.wants_new_stream

    def test_replayed_signals_are_kept_apart(self) -> None:
        session = SubscriberSession([Track(1, Start.SNAPSHOT, P(1, 2), P(1, 4))])
        session.request()
        delivery = session.take_signals(pb.Signals(signals=[sequenced(number) for number in range(3, 7)]))
        assert [one.sequence for one in delivery.replayed] == [3, 4]
        assert [one.sequence for one in delivery.fresh] == [5, 6]


class TestGaps:
    @pytest.mark.parametrize(
        "reason",
        [
            position_pb2.GAP_REASON_REJECTED,
            position_pb2.GAP_REASON_MASTER_LOST,
            position_pb2.GAP_REASON_LOG_LOST,
            position_pb2.GAP_REASON_TRIMMED,
            position_pb2.GAP_REASON_UNSPECIFIED,
        ],
    )
    def test_a_gap_degrades_and_asks_for_a_full_sync(self, reason: position_pb2.GapReason.ValueType) -> None:
        fed = Fed()
        fed.run(1, 2)
        steps = fed.gap(P(1, 3), P(1, 5), reason)
        name = position_pb2.GapReason.Name(reason).removeprefix("GAP_REASON_")
        assert steps == [GapSeen(1, P(1, 3), P(1, 5), name, P(1, 5)), Degraded(1, name)]
        assert fed.track.state is SyncState.DEGRADED
        assert fed.session.wants_new_stream
        assert fed.again().WhichOneof("start") == "from_snapshot"
        assert fed.track.state is SyncState.RESYNCING

    def test_a_reason_of_a_later_version_degrades_too(self) -> None:
        fed = Fed()
        fed.gap(P(1, 1), P(1, 1), 77)
        assert fed.track.degraded

    def test_a_new_epoch_moves_to_where_it_goes_on(self) -> None:
        fed = Fed()
        fed.run(1, 5)
        fed.gap(P(1, 6), P(1, 8), position_pb2.GAP_REASON_LOG_LOST, P(2, 8))
        assert fed.track.held == P(2, 8)
        fed.again()
        fed.snapshot(P(2, 8))
        assert fed.run(9, 10, epoch=2) == [9, 10]

    def test_what_a_pause_withholds_needs_no_full_sync(self) -> None:
        fed = Fed()
        fed.run(1, 2)
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_CLOSE_ONLY)
        steps = fed.gap(P(1, 3), P(1, 4), position_pb2.GAP_REASON_WITHHELD)
        assert steps == [GapSeen(1, P(1, 3), P(1, 4), "WITHHELD", P(1, 4))]
        assert not fed.session.wants_new_stream
        assert fed.run(5, 5) == [5]
        assert fed.track.state is SyncState.PAUSED_CLOSE_ONLY

    def test_the_end_of_a_pause_that_withheld_brings_a_full_sync(self) -> None:
        fed = Fed()
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.gap(P(1, 1), P(1, 4), position_pb2.GAP_REASON_WITHHELD)
        fed.state(pb.SUBSCRIPTION_STATE_SYNCED)
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_the_end_of_a_pause_that_withheld_nothing_does_not(self) -> None:
        fed = Fed()
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        assert fed.state(pb.SUBSCRIPTION_STATE_SYNCED) == [StateChanged(1, SyncState.SYNCED, "told to")]
        assert not fed.session.wants_new_stream

    def test_a_pause_counts_over_streams_that_did_not_open(self) -> None:
        """Whoever is paused needs no full sync of what was withheld, however often it must reconnect."""
        fed = Fed()
        fed.run(1, 2)
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.gap(P(1, 3), P(1, 4), position_pb2.GAP_REASON_WITHHELD)
        for _ in range(3):
            fed.session.stream_ended()
            assert not fed.session.ask_for_full_sync()
            assert fed.again().WhichOneof("start") == "after"
            assert fed.track.state is SyncState.PAUSED_ALL
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        assert fed.progress(P(1, 4)) == []
        assert not fed.session.wants_new_stream

    def test_a_stream_that_begins_without_a_pause_tells_its_end(self) -> None:
        fed = Fed()
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.gap(P(1, 1), P(1, 4), position_pb2.GAP_REASON_WITHHELD)
        fed.again()
        assert fed.progress(P(1, 4)) == [StateChanged(1, SyncState.SYNCED, "the pause is over")]
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_what_came_before_a_pause_withheld_it_is_not_told_as_missing(self) -> None:
        fed = Fed()
        fed.run(1, 6)
        fed.again()
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.snapshot(P(1, 3))
        steps = fed.gap(P(1, 4), P(1, 5), position_pb2.GAP_REASON_WITHHELD)
        assert steps == [WithheldAgain(1, P(1, 4), P(1, 5))]
        steps = fed.gap(P(1, 6), P(1, 8), position_pb2.GAP_REASON_WITHHELD)
        assert steps == [
            WithheldAgain(1, P(1, 6), P(1, 6)),
            GapSeen(1, P(1, 7), P(1, 8), "WITHHELD", P(1, 8)),
        ]
        assert fed.track.withheld

    def test_a_gap_that_comes_again_is_passed_over(self) -> None:
        fed = Fed()
        fed.gap(P(1, 1), P(1, 5))
        fed.again()
        fed.snapshot(P(1, 2))
        assert fed.gap(P(1, 3), P(1, 5)) == []
        assert fed.track.held == P(1, 5)


class TestFullSync:
    def test_a_snapshot_beyond_the_gap_heals(self) -> None:
        fed = Fed()
        fed.gap(P(1, 1), P(1, 5))
        fed.again()
        steps = fed.snapshot(P(1, 6))
        assert isinstance(steps[0], SnapshotReceived)
        assert steps[1:] == [StateChanged(1, SyncState.SYNCED, "full sync")]
        assert fed.run(7, 8) == [7, 8]

    def test_an_older_snapshot_does_not_and_what_was_processed_is_replayed(self) -> None:
        fed = Fed()
        fed.run(1, 3)
        fed.gap(P(1, 4), P(1, 5))
        fed.again()
        fed.snapshot(P(1, 2))
        assert fed.track.degraded
        delivery = fed.signals(sequenced(3))
        assert (len(delivery.replayed), delivery.fresh) == (1, [])
        fed.gap(P(1, 4), P(1, 5))
        assert fed.run(6, 6) == [6]
        assert fed.track.degraded
        assert fed.session.ask_for_full_sync()
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_a_full_sync_that_does_not_begin_lets_the_closes_through_meanwhile(self) -> None:
        fed = Fed()
        fed.run(1, 3)
        fed.gap(P(1, 4), P(1, 5))
        assert fed.again().WhichOneof("start") == "from_snapshot"
        start = fed.again()
        assert start.after == stream_position(P(1, 5))
        assert fed.track.degraded
        assert fed.run(6, 7) == [6, 7]

    def test_while_full_syncs_are_deferred_the_stream_goes_on_degraded(self) -> None:
        fed = Fed()
        fed.session.defers_full_syncs = True
        fed.gap(P(1, 1), P(1, 5))
        assert fed.track.degraded
        assert not fed.session.wants_new_stream
        assert fed.run(6, 7) == [6, 7]
        assert fed.session.misses_something
        assert fed.session.ask_for_full_sync()
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_while_full_syncs_are_deferred_what_follows_a_pause_is_taken(self) -> None:
        fed = Fed()
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.gap(P(1, 1), P(1, 4), position_pb2.GAP_REASON_WITHHELD)
        assert not fed.session.misses_something
        fed.session.defers_full_syncs = True
        fed.state(pb.SUBSCRIPTION_STATE_SYNCED)
        assert fed.run(5, 6) == [5, 6]
        assert fed.session.misses_something

    def test_nothing_is_asked_for_when_nothing_is_missing(self) -> None:
        assert not Fed().session.ask_for_full_sync()

    def test_signals_behind_the_gap_in_the_same_stream_wait_for_the_next(self) -> None:
        fed = Fed()
        fed.gap(P(1, 1), P(1, 5))
        assert fed.run(6, 7) == []
        assert fed.progress(P(1, 7)) == []
        assert fed.track.held == P(1, 5)
