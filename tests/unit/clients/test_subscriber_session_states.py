"""The subscriber's stream machine: states that the server tells, ends of streams, acknowledgements."""

from __future__ import annotations

from ecp_client.subscriber.endings import Offer, PositionsUnavailable
from ecp_client.subscriber.events import Degraded, GapSeen, ServerDraining, StateChanged, SyncState
from ecp_client.subscriber.session import (
    SubscriberSession,
)
from ecp_client.subscriber.track import Start, Track
from execution.common.v1 import position_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.unit.clients.fed_session import Fed, P, sequenced, stream_position

DEGRADED_GAP = pb.SUBSCRIPTION_STATE_DEGRADED_GAP


def behind_a_pause() -> Fed:
    """One who asked for the full sync that follows a pause that withheld signals."""
    fed = Fed(Start.NOW, P(1, 5))
    fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
    fed.gap(P(1, 6), P(1, 7), position_pb2.GAP_REASON_WITHHELD)
    fed.state(pb.SUBSCRIPTION_STATE_SYNCED)
    assert fed.again().WhichOneof("start") == "from_snapshot"
    return fed


class TestStatesAndEnds:
    def test_cancelled_masters_are_asked_for_no_more(self) -> None:
        session = SubscriberSession([Track(1, Start.NOW), Track(2, Start.NOW)])
        session.request()
        change = pb.StateChange(master_id=1, state=pb.SUBSCRIPTION_STATE_CANCELLED)
        (step,) = session.take(pb.SubscribeResponse(state_change=change))
        assert step == StateChanged(1, SyncState.CANCELLED, "")
        session.stream_ended()
        assert [one.master_id for one in session.request().masters] == [2]
        assert 1 not in session.unacknowledged()

    def test_a_full_sync_in_the_midst_of_a_stream_is_told_and_what_it_repeats_is_a_replay(self) -> None:
        fed = Fed()
        fed.run(1, 5)
        told = fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        assert [one.state for one in told if isinstance(one, StateChanged)] == [SyncState.RESYNCING]
        # The stream goes on meanwhile.
        assert fed.run(6, 6) == [6]
        as_of = position_pb2.StreamPosition(epoch=1, sequence=3)
        snapshot = pb.Snapshot(snapshot=snapshot_pb2.Snapshot(master_id=1, as_of=as_of))
        steps = fed.session.take(pb.SubscribeResponse(snapshot=snapshot))
        assert [one.state for one in steps if isinstance(one, StateChanged)] == [SyncState.SYNCED]
        delivery = fed.signals(*(sequenced(number) for number in range(4, 9)))
        assert [one.sequence for one in delivery.replayed] == [4, 5, 6]
        assert [one.sequence for one in delivery.fresh] == [7, 8]
        assert not fed.session.wants_new_stream

    def test_a_full_sync_whose_stream_broke_is_the_servers_to_tell_again(self) -> None:
        fed = Fed()
        fed.run(1, 5)
        fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        fed.session.stream_ended()
        assert fed.session.request().masters[0].after.sequence == 5
        assert fed.track.state is SyncState.SYNCED

    def test_a_state_of_a_later_version_is_ignored(self) -> None:
        assert Fed().state(99) == []

    def test_an_event_of_a_later_version_is_ignored(self) -> None:
        assert Fed().session.take(pb.SubscribeResponse.FromString(b"\xba\x01\x00")) == []

    def test_a_drain_is_told_with_its_time(self) -> None:
        drain = pb.Drain()
        drain.reconnect_after.FromMilliseconds(1_250)
        assert Fed().session.take(pb.SubscribeResponse(drain=drain)) == [ServerDraining(1_250)]

    def test_a_position_that_is_gone_leads_to_the_snapshot(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        offer = Offer(P(1, 50), P(1, 90), P(1, 80))
        steps = fed.session.stream_ended(PositionsUnavailable({1: offer}))
        assert steps == [Degraded(1, "TRIMMED")]
        assert fed.session.request().masters[0].WhichOneof("start") == "from_snapshot"

    def test_without_a_snapshot_it_goes_on_from_the_oldest_and_says_what_is_missing(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        offer = Offer(P(1, 50), P(1, 90), None)
        steps = fed.session.stream_ended(PositionsUnavailable({1: offer}))
        assert steps == [GapSeen(1, P(1, 6), P(1, 50), "TRIMMED", P(1, 50)), Degraded(1, "TRIMMED")]
        assert fed.session.request().masters[0].after == stream_position(P(1, 50))
        assert fed.run(51, 52) == [51, 52]

    def test_what_came_before_is_not_said_to_be_missing(self) -> None:
        """From before the end of what was delivered, as after a crash or behind an older snapshot."""
        fed = Fed(Start.NOW, P(1, 5))
        fed.track.processed = P(1, 9)
        steps = fed.session.stream_ended(PositionsUnavailable({1: Offer(P(1, 50), P(1, 90), None)}))
        assert steps == [GapSeen(1, P(1, 10), P(1, 50), "TRIMMED", P(1, 50)), Degraded(1, "TRIMMED")]
        fed.track.held, fed.track.processed = P(1, 5), P(1, 60)
        steps = fed.session.stream_ended(PositionsUnavailable({1: Offer(P(1, 50), P(1, 90), None)}))
        assert steps == [Degraded(1, "TRIMMED")]
        assert fed.session.request().masters[0].after == stream_position(P(1, 50))

    def test_of_a_lost_log_only_what_never_came_is_missing(self) -> None:
        lost = position_pb2.GAP_REASON_LOG_LOST
        for processed, first, last in (
            (P(1, 9), P(1, 10), P(1, 20)),
            (P(1, 20), P(2, 20), P(2, 20)),
            (P(1, 5), P(1, 6), P(1, 20)),
        ):
            fed = Fed(Start.NOW, P(1, 5))
            fed.track.processed = processed
            seen, degraded = fed.gap(P(1, 6), P(1, 20), lost, P(2, 20))
            assert seen == GapSeen(1, first, last, "LOG_LOST", P(2, 20))
            assert degraded == Degraded(1, "LOG_LOST")

    def test_masters_that_are_not_meant_stay_where_they_are(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        assert fed.session.stream_ended(PositionsUnavailable({2: Offer(P(1, 1), P(1, 1), None)})) == []
        assert fed.session.request().masters[0].after == stream_position(P(1, 5))

    def test_without_details_all_masters_are_meant(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        assert fed.session.stream_ended(PositionsUnavailable()) == [Degraded(1, "TRIMMED")]

    def test_a_full_sync_that_follows_a_pause_is_not_left_when_it_is_told(self) -> None:
        fed = behind_a_pause()
        fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        assert not fed.session.wants_new_stream
        fed.snapshot(P(1, 7))
        assert fed.track.state is SyncState.SYNCED


class TestToldThatSomethingIsMissing:
    """By a server that learnt it elsewhere: from the ledger, or in a replay of what was passed over."""

    def test_one_who_believes_to_be_in_step_asks_for_a_full_sync(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        steps = fed.state(DEGRADED_GAP)
        assert steps == [Degraded(1, "TOLD"), StateChanged(1, SyncState.DEGRADED, "told to")]
        assert fed.session.wants_new_stream
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_any_snapshot_heals_it(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(DEGRADED_GAP)
        fed.again()
        fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        fed.snapshot(P(1, 2))
        assert fed.track.state is SyncState.SYNCED
        delivery = fed.signals(*(sequenced(number) for number in range(3, 8)))
        assert [one.sequence for one in delivery.replayed] == [3, 4, 5]
        assert [one.sequence for one in delivery.fresh] == [6, 7]
        assert fed.state(pb.SUBSCRIPTION_STATE_SYNCED) == []
        assert not fed.session.misses_something

    def test_nothing_more_of_that_stream_is_taken(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(DEGRADED_GAP)
        assert fed.run(6, 7) == []
        assert fed.gap(P(1, 6), P(1, 8)) == []
        assert fed.progress(P(1, 9)) == []
        assert fed.track.held == P(1, 5)

    def test_while_full_syncs_are_deferred_it_is_followed_on_degraded(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.session.defers_full_syncs = True
        assert fed.state(DEGRADED_GAP)[0] == Degraded(1, "TOLD")
        assert not fed.session.wants_new_stream
        assert fed.run(6, 7) == [6, 7]
        assert fed.gap(P(1, 8), P(1, 9))[1:] == [Degraded(1, "REJECTED")]
        assert fed.session.ask_for_full_sync()
        assert fed.again().WhichOneof("start") == "from_snapshot"
        fed.snapshot(P(1, 6))
        assert fed.track.degraded, "the hole that was seen lies behind the snapshot"

    def test_what_the_client_knows_itself_is_no_news(self) -> None:
        fed = Fed()
        fed.session.defers_full_syncs = True
        fed.gap(P(1, 1), P(1, 5))
        assert fed.state(DEGRADED_GAP) == []
        assert fed.track.degraded_at == P(1, 5)
        fed.session.defers_full_syncs = False
        assert fed.state(DEGRADED_GAP) == []
        assert not fed.session.wants_new_stream

    def test_one_who_holds_nothing_misses_nothing(self) -> None:
        fed = Fed(Start.NOW)
        assert fed.state(DEGRADED_GAP) == []
        assert not fed.session.wants_new_stream

    def test_one_whose_snapshot_is_on_its_way_waits_for_it(self) -> None:
        fed = behind_a_pause()
        assert fed.state(DEGRADED_GAP) == []
        assert not fed.session.wants_new_stream

    def test_a_stream_that_is_given_up_is_told_it_again_by_the_next_one(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.run(8, 8)
        assert fed.state(DEGRADED_GAP) == []
        assert fed.again().WhichOneof("start") == "after"
        assert fed.state(DEGRADED_GAP)[0] == Degraded(1, "TOLD")

    def test_one_whose_subscription_ended_asks_for_nothing(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(pb.SUBSCRIPTION_STATE_CANCELLED)
        assert fed.state(DEGRADED_GAP) == []
        assert not fed.session.wants_new_stream

    def test_the_end_of_a_pause_may_tell_it(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        steps = fed.state(DEGRADED_GAP)
        assert steps == [Degraded(1, "TOLD"), StateChanged(1, SyncState.DEGRADED, "told to")]
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_the_end_of_a_pause_that_withheld_asks_once(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(pb.SUBSCRIPTION_STATE_PAUSED_ALL)
        fed.gap(P(1, 6), P(1, 7), position_pb2.GAP_REASON_WITHHELD)
        fed.state(DEGRADED_GAP)
        assert fed.again().WhichOneof("start") == "from_snapshot"
        fed.snapshot(P(1, 7))
        assert not fed.session.misses_something

    def test_a_full_sync_in_the_midst_of_the_stream_heals_it(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.session.defers_full_syncs = True
        fed.state(DEGRADED_GAP)
        fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        fed.snapshot(P(1, 4))
        fed.run(5, 6)
        assert fed.track.state is SyncState.SYNCED
        assert not fed.session.misses_something

    def test_without_a_snapshot_it_is_followed_on_degraded_and_told_again_in_vain(self) -> None:
        """Of a master that has never sent one: each stream says it, and none is left because of that."""
        fed = Fed(Start.NOW, P(1, 5))
        fed.state(DEGRADED_GAP)
        assert fed.again().WhichOneof("start") == "from_snapshot"
        for _ in range(5):
            assert fed.again().after == stream_position(P(1, 5))
            assert fed.state(DEGRADED_GAP) == []
            assert not fed.session.wants_new_stream
        assert fed.run(6, 7) == [6, 7]
        assert fed.track.state is SyncState.DEGRADED

    def test_a_position_that_is_gone_counts_more(self) -> None:
        fed = Fed(Start.NOW, P(1, 5))
        fed.session.defers_full_syncs = True
        fed.state(DEGRADED_GAP)
        steps = fed.session.stream_ended(PositionsUnavailable({1: Offer(P(1, 50), P(1, 90), None)}))
        assert steps[-1] == Degraded(1, "TRIMMED")
        assert fed.track.degraded_at == P(1, 50)

    def test_a_hole_in_what_follows_an_older_snapshot_degrades_again(self) -> None:
        """It was made up for by a newer snapshot, which this one replaced."""
        fed = Fed()
        fed.gap(P(1, 1), P(1, 5))
        fed.again()
        fed.snapshot(P(1, 6))
        fed.run(7, 8)
        fed.state(pb.SUBSCRIPTION_STATE_RESYNCING)
        fed.snapshot(P(1, 2))
        assert fed.track.state is SyncState.SYNCED
        assert fed.gap(P(1, 3), P(1, 5)) == [Degraded(1, "REJECTED")]
        assert fed.state(DEGRADED_GAP) == []
        assert fed.again().WhichOneof("start") == "from_snapshot"

    def test_an_older_snapshot_that_comes_again_does_not_heal_it(self) -> None:
        """Or else it would be asked for at once again, and again."""
        fed = Fed(Start.NOW, P(1, 8))
        fed.snapshot(P(1, 2))
        fed.gap(P(1, 3), P(1, 5))
        fed.again()
        fed.session.defers_full_syncs = True
        fed.snapshot(P(1, 2))
        assert fed.gap(P(1, 3), P(1, 5)) == []
        assert fed.state(DEGRADED_GAP) == []
        assert not fed.session.wants_new_stream
        assert fed.session.misses_something


class TestAcknowledging:
    def test_only_what_moved_is_acknowledged(self) -> None:
        fed = Fed()
        assert fed.session.unacknowledged() == {}
        fed.run(1, 3)
        assert fed.session.unacknowledged() == {1: P(1, 3)}
        fed.session.acknowledged({1: P(1, 3)})
        assert fed.session.unacknowledged() == {}
        fed.run(4, 4)
        assert fed.session.unacknowledged() == {1: P(1, 4)}
