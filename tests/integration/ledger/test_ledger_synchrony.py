"""Whether subscribers are in step: every transition with its time and reason, and the full syncs that are asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

from google.protobuf.timestamp_pb2 import Timestamp

from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import subscription_service_pb2 as pb
from tests.integration.ledger.followed import Followed
from tests.integration.ledger.ledger_service import LedgerClient, events_in, eventually

SYNCED, DEGRADED, RESYNCING = (
    pb.SYNC_STATE_SYNCED,
    pb.SYNC_STATE_DEGRADED_GAP,
    pb.SYNC_STATE_RESYNCING,
)
ASKED = "a full sync was asked for: a customer called"


def turn(state: pb.SyncState.ValueType, reason: str, at: datetime | None = None) -> pb.SyncTransition:
    changed_at = None
    if at is not None:
        changed_at = Timestamp()
        changed_at.FromDatetime(at)
    return pb.SyncTransition(sync_state=state, reason=reason, changed_at=changed_at)


async def test_every_transition_of_a_record_is_kept_with_its_own_time_and_reason(followed: Followed) -> None:
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=30)
    turns = [
        turn(SYNCED, "the stream begins now", began),
        turn(DEGRADED, "lost 5 to 9", began + timedelta(seconds=1)),
        turn(DEGRADED, "still", began + timedelta(seconds=2)),
        turn(RESYNCING, "a full sync is under way", began + timedelta(seconds=3)),
        turn(SYNCED, "the full sync is complete", began + timedelta(seconds=4)),
    ]
    answer = await followed.record(transitions=turns, acknowledged={"epoch": 1, "sequence": 9})
    assert (answer.recorded, answer.unknown) == (1, 0)
    created, *found = await followed.transitions()
    assert created.kind == pb.TRANSITION_KIND_CREATED
    assert {one.kind for one in found} == {pb.TRANSITION_KIND_SYNC}
    assert [(one.sync_before, one.sync_after, one.reason) for one in found] == [
        (pb.SYNC_STATE_UNSPECIFIED, SYNCED, "the stream begins now"),
        (SYNCED, DEGRADED, "lost 5 to 9"),
        (DEGRADED, RESYNCING, "a full sync is under way"),
        (RESYNCING, SYNCED, "the full sync is complete"),
    ]
    assert [one.changed_at.ToDatetime(UTC) for one in found] == [
        began + timedelta(seconds=seconds) for seconds in (0, 1, 3, 4)
    ]
    now = await followed.now()
    assert (now.sync_state, now.sync_reason) == (SYNCED, "the full sync is complete")
    assert now.sync_changed_at == found[-1].changed_at
    assert now.acknowledged.sequence == 9


async def test_a_time_of_a_clock_that_is_ahead_counts_as_now(followed: Followed) -> None:
    await followed.record(transitions=[turn(DEGRADED, "", datetime.now(UTC) + timedelta(days=400))])
    found = (await followed.transitions())[-1]
    assert found.sync_after == DEGRADED
    assert found.changed_at.ToDatetime(UTC) < datetime.now(UTC) + timedelta(days=1)


async def test_pauses_and_the_end_are_among_the_transitions(followed: Followed) -> None:
    await followed.pause(licenses.PAUSE_SCOPE_ALL)
    await followed.resume()
    await followed.cancel()
    found = [
        (one.kind, one.pause_before, one.pause_after, one.reason) for one in await followed.transitions()
    ]
    assert found == [
        (pb.TRANSITION_KIND_CREATED, 0, 0, ""),
        (pb.TRANSITION_KIND_PAUSE, 0, 2, "operator says so"),
        (pb.TRANSITION_KIND_PAUSE, 2, 0, "fine again"),
        (pb.TRANSITION_KIND_CANCELLED, 0, 0, "left"),
    ]


async def test_a_full_sync_is_due_until_its_own_end_is_recorded(followed: Followed) -> None:
    await followed.record(sync_state=SYNCED)
    (asked,) = (await followed.ask_for_full_sync()).subscriptions
    assert (asked.full_sync_due, asked.sync_state, asked.sync_reason) == (1, RESYNCING, ASKED)
    # What was under way before says nothing of it.
    await followed.record(transitions=[turn(SYNCED, "an older one")])
    assert (await followed.now()).full_sync_due == 1
    await followed.record(transitions=[turn(RESYNCING, ASKED), turn(SYNCED, "done")], full_sync_done=1)
    now = await followed.now()
    assert (now.full_sync_due, now.sync_state) == (0, SYNCED)
    states = [(one.sync_before, one.sync_after, one.reason) for one in await followed.transitions()][1:]
    assert states == [
        (pb.SYNC_STATE_UNSPECIFIED, SYNCED, ""),
        (SYNCED, RESYNCING, ASKED),
        (RESYNCING, SYNCED, "an older one"),
        (SYNCED, RESYNCING, ASKED),
        (RESYNCING, SYNCED, "done"),
    ]


async def test_asking_again_before_it_is_done_changes_nothing(followed: Followed, redis_url: str) -> None:
    for _ in range(3):
        (asked,) = (await followed.ask_for_full_sync()).subscriptions
        assert asked.full_sync_due == 1
    await followed.record(full_sync_done=1)
    (again,) = (await followed.ask_for_full_sync()).subscriptions
    assert again.full_sync_due == 2
    # One who says more than was asked for is taken at what was.
    await followed.record(full_sync_done=99)
    (third,) = (await followed.ask_for_full_sync()).subscriptions
    assert third.full_sync_due == 3

    async def told() -> bool:
        events = [
            e.full_sync_requested for e in await events_in(redis_url) if e.HasField("full_sync_requested")
        ]
        assert {(e.subscription_id, e.user_id, e.master_id, e.reason) for e in events} <= {
            (followed.made.subscription_id, followed.user.user_id, followed.made.master_id, ASKED)
        }
        return [e.full_sync for e in events] == [1, 2, 3]

    await eventually(told)


async def test_full_syncs_are_asked_for_by_user_and_by_master_a_page_at_a_time(
    ledger: LedgerClient, followed: Followed
) -> None:
    other = (await ledger.master(await ledger.user())).master.master_id
    more = [await ledger.subscription(await ledger.user(), followed.made.master_id) for _ in range(4)]
    cancelled, *_ = more
    await Followed(ledger, followed.user, cancelled).cancel()
    beside = await ledger.subscription(followed.user, other)

    asked: list[str] = []
    token = ""
    while True:
        request = pb.RequestFullSyncRequest(
            master_id=followed.made.master_id, reason="a gap", page_size=2, page_token=token
        )
        page = await ledger.call("SubscriptionService/RequestFullSync", request)
        asked += [one.subscription_id for one in page.subscriptions]
        assert all(one.full_sync_due == 1 for one in page.subscriptions)
        token = page.next_page_token
        if not token:
            break
    of_master = {one.subscription_id for one in (followed.made, *more)} - {cancelled.subscription_id}
    assert asked == sorted(of_master)

    of_user = (await followed.ask_for_full_sync(user_id=followed.user.user_id)).subscriptions
    assert {one.subscription_id for one in of_user} == {
        followed.made.subscription_id,
        beside.subscription_id,
    }
    both = await followed.ask_for_full_sync(user_id=followed.user.user_id, master_id=other)
    assert [one.subscription_id for one in both.subscriptions] == [beside.subscription_id]
    assert [one.full_sync_due for one in both.subscriptions] == [1]


async def test_a_license_tells_what_is_due(ledger: LedgerClient, followed: Followed) -> None:
    token = (await ledger.license(followed.user)).token

    async def due() -> list[int]:
        request = licenses.AuthenticateRequest(token=token)
        answer = await ledger.call("LicenseService/Authenticate", request)
        return [one.full_sync_due for one in answer.entitlements]

    assert await due() == [0]
    await followed.ask_for_full_sync()
    assert await due() == [1]
    await followed.record(full_sync_done=1)
    assert await due() == [0]


def placed(
    state: pb.SyncState.ValueType, reason: str, at: datetime, place: tuple[int, int] | None = None
) -> pb.SyncTransition:
    one = turn(state, reason, at)
    if place is not None:
        one.position.epoch, one.position.sequence = place
    return one


BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)


def after(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


async def test_a_gap_that_is_recorded_after_the_full_sync_that_healed_it_is_history(
    followed: Followed,
) -> None:
    """Two processes, each with records of its own: the one that told the gap is the later one to reach the ledger."""
    await followed.record(transitions=[placed(SYNCED, "now", after(0), (1, 5))])
    await followed.record(transitions=[placed(SYNCED, "the full sync is complete", after(2), (2, 9))])
    await followed.record(transitions=[placed(DEGRADED, "a new epoch began", after(1), (2, 9))])
    now = await followed.now()
    assert (now.sync_state, now.sync_reason) == (SYNCED, "now")
    found = [(one.sync_before, one.sync_after, one.reason) for one in await followed.transitions()][2:]
    assert found == [(SYNCED, DEGRADED, "a new epoch began"), (DEGRADED, SYNCED, "now")]
    # The next one is news again.
    await followed.record(transitions=[placed(DEGRADED, "a hole", after(3), (2, 12))])
    assert (await followed.now()).sync_state == DEGRADED


async def test_one_who_comes_back_with_less_than_was_told_before_misses_it_again(followed: Followed) -> None:
    """Such as a terminal that was restored from a backup: what it misses lies before the last full sync."""
    await followed.record(transitions=[placed(SYNCED, "now", after(0), (1, 90))])
    await followed.record(transitions=[placed(DEGRADED, "a hole", after(5), (1, 40))])
    assert (await followed.now()).sync_state == DEGRADED
    await followed.record(transitions=[placed(SYNCED, "the full sync is complete", after(6), (1, 90))])
    assert (await followed.now()).sync_state == SYNCED


async def test_being_in_step_before_something_was_missed_does_not_hide_that(followed: Followed) -> None:
    await followed.record(transitions=[placed(DEGRADED, "a hole", after(2), (1, 40))])
    await followed.record(transitions=[placed(SYNCED, "everything was delivered", after(1), (1, 30))])
    now = await followed.now()
    assert (now.sync_state, now.sync_reason) == (DEGRADED, "a hole")
    # Whatever its clock says, who was in step there has what the hole took from others.
    await followed.record(transitions=[placed(SYNCED, "the full sync is complete", after(1.5), (1, 40))])
    assert (await followed.now()).sync_state == SYNCED


async def test_a_full_sync_does_not_begin_after_it_was_done(followed: Followed) -> None:
    await followed.record(transitions=[placed(DEGRADED, "a hole", after(0), (1, 40))])
    await followed.record(transitions=[placed(SYNCED, "the full sync is complete", after(3), (1, 50))])
    await followed.record(transitions=[placed(RESYNCING, "a full sync is under way", after(2))])
    now = await followed.now()
    assert (now.sync_state, now.sync_reason) == (SYNCED, "the full sync is complete")
    await followed.record(transitions=[placed(RESYNCING, "another one is", after(4))])
    assert (await followed.now()).sync_state == RESYNCING


async def test_records_of_two_processes_end_alike_in_whatever_order_they_come(
    ledger: LedgerClient, followed: Followed
) -> None:
    first = [placed(SYNCED, "now", after(0), (1, 5)), placed(DEGRADED, "a hole", after(1), (1, 9))]
    second = [
        placed(RESYNCING, "a full sync is under way", after(2)),
        placed(SYNCED, "the full sync is complete", after(3), (1, 11)),
    ]
    third = [placed(DEGRADED, "a new epoch began", after(4), (2, 11))]
    last = [placed(RESYNCING, "again", after(5)), placed(SYNCED, "in step again", after(6), (2, 12))]
    for order in permutations((first, second, third, last)):
        made = await ledger.subscription(await ledger.user(), followed.made.master_id)
        one = Followed(ledger, followed.user, made)
        for turns in order:
            position = pb.SubscriberPosition(
                user_id=made.user_id, master_id=made.master_id, transitions=turns
            )
            await ledger.call(
                "SubscriptionService/RecordPositions", pb.RecordPositionsRequest(positions=[position])
            )
        reasons = [entry.reason for turns in order for entry in turns]
        assert (await one.now()).sync_state == SYNCED, reasons
        lines = [line for line in await one.transitions() if line.kind == pb.TRANSITION_KIND_SYNC]
        chain = [pb.SYNC_STATE_UNSPECIFIED, *(line.sync_after for line in lines)]
        assert [line.sync_before for line in lines] == chain[:-1], reasons
        # That something was missed can be found, however late it was heard.
        assert any(line.sync_after == DEGRADED for line in lines), reasons
