"""Subscriptions: their life, their pauses, how far subscribers have come, and what others are told."""

from __future__ import annotations

import asyncio

from execution.ledger.v1 import billing_service_pb2 as billing
from execution.ledger.v1 import events_pb2
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import subscription_service_pb2 as pb
from execution.ledger.v1 import user_service_pb2 as users
from services.common.errors import AlreadyExistsError, FailedPreconditionError
from tests.integration.ledger.followed import Followed
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    events_in,
    eventually,
    refused,
    superuser,
    unique,
)

CLOSE_ONLY, ALL = licenses.PAUSE_SCOPE_CLOSE_ONLY, licenses.PAUSE_SCOPE_ALL
NONE = licenses.PAUSE_SCOPE_UNSPECIFIED


async def test_a_user_follows_a_master_once_at_a_time(ledger: LedgerClient, followed: Followed) -> None:
    error = await refused(ledger.subscription(followed.user, followed.made.master_id))
    assert (type(error), error.reason) == (AlreadyExistsError, "SUBSCRIPTION_EXISTS")
    await followed.cancel()
    again = await ledger.subscription(followed.user, followed.made.master_id)
    assert again.subscription_id != followed.made.subscription_id


async def test_of_many_attempts_at_once_one_subscription_comes(ledger: LedgerClient) -> None:
    user, master = await ledger.user(), (await ledger.master(await ledger.user())).master
    answers = await asyncio.gather(
        *(ledger.subscription(user, master.master_id, fee_e8=100, fee_asset="USD") for _ in range(6)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, pb.Subscription) for answer in answers) == 1
    report = await ledger.call("BillingService/CheckBooks", billing.CheckBooksRequest())
    assert (report.balanced, report.journal_count) == (True, 1)


async def test_the_first_fee_is_posted_with_the_subscription_and_once(ledger: LedgerClient) -> None:
    owner, user = await ledger.user(), await ledger.user()
    master = (await ledger.master(owner)).master
    terms = {"fee_e8": 1_001, "fee_asset": "USD", "platform_share_bps": 3_333}
    for _ in range(2):
        await ledger.subscription(user, master.master_id, request_id="follow", **terms)
    page = await ledger.call("BillingService/ListJournals", billing.ListJournalsRequest())
    (journal,) = page.journals
    assert [(entry.account, entry.asset, entry.amount_e8) for entry in journal.entries] == [
        (f"user:{user.user_id}:receivable", "USD", 1_001),
        ("platform:revenue", "USD", -333),
        (f"user:{owner.user_id}:payable", "USD", -668),
    ]


async def test_the_stricter_of_two_pauses_counts_and_risk_ends_only_its_own(followed: Followed) -> None:
    paused = await followed.pause(CLOSE_ONLY)
    assert (paused.pause, paused.paused_by) == (CLOSE_ONLY, pb.PAUSED_BY_OPERATOR)
    answer = await followed.trust(1, 20, ALL)
    (changed,) = answer.changed
    assert (changed.pause, changed.paused_by, changed.pause_reason) == (ALL, pb.PAUSED_BY_RISK, "toxic")
    (changed,) = (await followed.trust(2, 90, NONE)).changed
    assert (changed.pause, changed.paused_by) == (CLOSE_ONLY, pb.PAUSED_BY_OPERATOR)
    assert (await followed.trust(3, 95, NONE)).changed == []
    resumed = await followed.resume()
    assert (resumed.pause, resumed.paused_by, resumed.pause_reason) == (NONE, pb.PAUSED_BY_UNSPECIFIED, "")


async def test_an_operator_ends_a_pause_of_risk(followed: Followed) -> None:
    await followed.trust(1, 40, CLOSE_ONLY)
    assert (await followed.resume()).pause == NONE
    assert (await followed.trust(2, 40, CLOSE_ONLY)).changed[0].pause == CLOSE_ONLY


async def test_an_old_decision_of_risk_changes_nothing(ledger: LedgerClient, followed: Followed) -> None:
    await followed.trust(5, 40, CLOSE_ONLY)
    for version in (4, 5):
        answer = await followed.trust(version, 100, NONE)
        assert (answer.applied, list(answer.changed)) == (False, [])
    user = (
        await ledger.call("UserService/GetUser", users.GetUserRequest(user_id=followed.user.user_id))
    ).user
    assert (user.trust_score, user.trust_version) == (40, 5)
    assert (await followed.now()).pause == CLOSE_ONLY


async def test_a_new_subscription_is_no_way_around_a_pause_of_risk(
    ledger: LedgerClient, followed: Followed
) -> None:
    await followed.trust(1, 20, ALL)
    await followed.cancel()
    again = await ledger.subscription(followed.user, followed.made.master_id)
    assert (again.pause, again.paused_by) == (ALL, pb.PAUSED_BY_RISK)


async def test_trust_changes_all_subscriptions_of_the_user_and_no_others(
    ledger: LedgerClient, followed: Followed
) -> None:
    owner = await ledger.user()
    mine = [followed.made] + [
        await ledger.subscription(followed.user, (await ledger.master(owner)).master.master_id)
        for _ in range(3)
    ]
    other = await ledger.subscription(await ledger.user(), followed.made.master_id)
    answer = await followed.trust(1, 40, CLOSE_ONLY)
    assert {one.subscription_id for one in answer.changed} == {one.subscription_id for one in mine}
    request = pb.GetSubscriptionRequest(subscription_id=other.subscription_id)
    assert (await ledger.call("SubscriptionService/GetSubscription", request)).subscription.pause == NONE


async def test_repeats_change_neither_version_nor_history(followed: Followed, fresh_database: str) -> None:
    for _ in range(3):
        paused = await followed.pause(ALL)
    assert paused.version == 2
    for _ in range(3):
        resumed = await followed.resume()
    assert resumed.version == 3
    for _ in range(3):
        cancelled = await followed.cancel()
    assert cancelled.version == 4
    async with superuser(fresh_database) as connection:
        rows = await connection.fetch(
            "select change, old_value, new_value, reason from ledger.subscription_history order by history_id"
        )
    assert [tuple(row) for row in rows] == [
        ("created", 0, 0, ""),
        ("pause", 0, 2, "operator says so"),
        ("pause", 2, 0, "fine again"),
        ("cancelled", 0, 0, "left"),
    ]


async def test_a_cancelled_subscription_takes_no_more_changes(followed: Followed) -> None:
    await followed.cancel()
    for change in (followed.pause(ALL), followed.resume()):
        error = await refused(change)
        assert (type(error), error.reason) == (FailedPreconditionError, "SUBSCRIPTION_CANCELLED")
    assert (await followed.trust(1, 20, ALL)).changed == []
    assert (await followed.record(sync_state=pb.SYNC_STATE_SYNCED)).unknown == 1


async def test_positions_only_move_forward(followed: Followed) -> None:
    for epoch, sequence in [(1, 10), (1, 7), (2, 3), (1, 99), (2, 3)]:
        answer = await followed.record(acknowledged={"epoch": epoch, "sequence": sequence})
        assert (answer.recorded, answer.unknown) == (1, 0)
    now = (await followed.now()).acknowledged
    assert (now.epoch, now.sequence) == (2, 3)


async def test_sync_states_are_kept_with_time_and_reason_of_each_change(
    followed: Followed, fresh_database: str
) -> None:
    await followed.record(sync_state=pb.SYNC_STATE_SYNCED)
    await followed.record(sync_state=pb.SYNC_STATE_DEGRADED_GAP, reason="lost 5 to 9")
    await followed.record(sync_state=pb.SYNC_STATE_DEGRADED_GAP, reason="still")
    await followed.record(acknowledged={"epoch": 1, "sequence": 4}, reason="not kept")
    assert (await followed.now()).sync_state == pb.SYNC_STATE_DEGRADED_GAP
    async with superuser(fresh_database) as connection:
        rows = await connection.fetch(
            "select old_value, new_value, reason from ledger.subscription_history where change = 'sync' order by 1"
        )
    assert [tuple(row) for row in rows] == [(0, 1, ""), (1, 2, "lost 5 to 9")]


async def test_of_one_subscriber_and_master_the_last_position_counts(followed: Followed) -> None:
    of = {"user_id": followed.user.user_id, "master_id": followed.made.master_id}
    request = pb.RecordPositionsRequest(
        positions=[
            pb.SubscriberPosition(**of, acknowledged={"epoch": 1, "sequence": 9}),
            pb.SubscriberPosition(user_id=followed.user.user_id, master_id=9_999),
            pb.SubscriberPosition(**of, acknowledged={"epoch": 1, "sequence": 5}),
        ]
    )
    answer = await followed.ledger.call("SubscriptionService/RecordPositions", request)
    assert (answer.recorded, answer.unknown) == (1, 1)
    assert (await followed.now()).acknowledged.sequence == 5


async def test_many_recorders_and_risk_at_once_do_not_block_each_other_for_good(
    ledger: LedgerClient, followed: Followed
) -> None:
    owner = await ledger.user()
    all_of_them = [followed.made] + [
        await ledger.subscription(followed.user, (await ledger.master(owner)).master.master_id)
        for _ in range(5)
    ]

    async def record(number: int) -> None:
        order = all_of_them if number % 2 else all_of_them[::-1]
        request = pb.RecordPositionsRequest(
            positions=[
                pb.SubscriberPosition(
                    user_id=followed.user.user_id,
                    master_id=one.master_id,
                    acknowledged={"epoch": 1, "sequence": number},
                )
                for one in order
            ]
        )
        answer = await ledger.call("SubscriptionService/RecordPositions", request)
        assert answer.recorded == len(all_of_them)

    decisions = [followed.trust(version, 40, version % 3) for version in range(1, 11)]
    await asyncio.gather(*(record(number) for number in range(1, 31)), *decisions)
    assert (await followed.now()).acknowledged.sequence == 30


async def test_subscriptions_are_listed_by_user_by_master_and_by_both(ledger: LedgerClient) -> None:
    owner = await ledger.user()
    masters = [(await ledger.master(owner)).master.master_id for _ in range(2)]
    followers = [await ledger.user() for _ in range(3)]
    made = [
        (user.user_id, master, await ledger.subscription(user, master))
        for user in followers
        for master in masters
    ]

    async def listed(**filters: object) -> list[str]:
        found, token = [], ""
        while True:
            page = await ledger.call(
                "SubscriptionService/ListSubscriptions",
                pb.ListSubscriptionsRequest(page_size=2, page_token=token, **filters),
            )
            found += [one.subscription_id for one in page.subscriptions]
            token = page.next_page_token
            if not token:
                return found

    def expected(user_id: str = "", master_id: int = 0) -> list[str]:
        return [s.subscription_id for u, m, s in made if user_id in ("", u) and master_id in (0, m)]

    assert await listed() == expected()
    assert await listed(user_id=followers[1].user_id) == expected(user_id=followers[1].user_id)
    assert await listed(master_id=masters[1]) == expected(master_id=masters[1])
    both = {"user_id": followers[2].user_id, "master_id": masters[0]}
    assert await listed(**both) == expected(**both)


async def test_every_change_is_told_in_order(
    ledger: LedgerClient, followed: Followed, redis_url: str
) -> None:
    await followed.pause(CLOSE_ONLY)
    await followed.trust(1, 20, ALL)
    await followed.cancel()

    async def all_told() -> list[events_pb2.LedgerEvent]:
        told = await events_in(redis_url)
        return told if len(told) >= 5 else []

    told = await eventually(all_told)
    assert [event.event_id for event in told] == sorted({event.event_id for event in told})
    kinds = [event.WhichOneof("event") for event in told]
    assert kinds == ["subscription_changed"] * 2 + ["trust_changed"] + ["subscription_changed"] * 2
    changes = [event.subscription_changed for event in told if event.HasField("subscription_changed")]
    assert [(one.pause, one.cancelled, one.version) for one in changes] == [
        (NONE, False, 1),
        (CLOSE_ONLY, False, 2),
        (ALL, False, 3),
        (ALL, True, 4),
    ]
    assert told[2].trust_changed == events_pb2.TrustChanged(
        user_id=followed.user.user_id, trust_score=20, version=1
    )
    assert all(event.HasField("occurred_at") for event in told)


async def test_a_repeated_create_returns_the_first_subscription(
    ledger: LedgerClient, followed: Followed
) -> None:
    request_id, master = unique(), (await ledger.master(await ledger.user())).master
    first = await ledger.subscription(followed.user, master.master_id, request_id=request_id)
    assert await ledger.subscription(followed.user, master.master_id, request_id=request_id) == first
