"""The demo's reconciliation notices every kind of difference, and only differences."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from mesh.demo import prices
from mesh.demo.reconcile import (
    Evidence,
    LoggedSignal,
    MasterBook,
    Reconciliation,
    SubscriberBook,
    ToldGap,
    reconcile,
)
from mesh.demo.replay import Holdings, follow
from mesh.demo.stores import digest_of
from mesh.demo.strategies import MeanReversion

MASTER = 7


def sound_evidence(*, refuse: bool = False, withhold: bool = False) -> Evidence:
    trader = MeanReversion()
    signals = [
        signal
        for price in itertools.islice(prices.ticks(prices.read_bars()), 300)
        for signal in trader.on_tick(price)
    ]
    log = [LoggedSignal((1, number), digest_of(s), s) for number, s in enumerate(signals, start=1)]
    openings = [entry.position for entry in log if entry.signal.kind == signal_pb2.SIGNAL_KIND_OPEN]
    refused = frozenset(openings[-3:-2]) if refuse else frozenset()
    withheld = openings[-2:-1] if withhold else []
    steps = [(e.signal, e.position not in refused) for e in log if e.position not in withheld]
    subscriber = SubscriberBook(
        name="follower",
        user_id="u",
        volume_percent=50,
        was_paused=withhold,
        late_openings=0,
        received={MASTER: [entry.position for entry in log if entry.position not in withheld]},
        refused={MASTER: refused},
        gaps=[ToldGap(MASTER, at, at, position_pb2.GAP_REASON_WITHHELD) for at in withheld],
        full_syncs=[],
        holdings={MASTER: follow(steps).scaled(50)},
    )
    master = MasterBook(
        master_id=MASTER,
        name="reversion",
        acknowledged={entry.position[1]: entry.digest for entry in log},
        declared_gaps=frozenset(),
        account=trader.account.snapshot(MASTER, len(log)),
    )
    return Evidence(
        [master],
        {MASTER: log},
        {},
        {MASTER: list(log)},
        {MASTER: master.account},
        [subscriber],
        ledger_balanced=True,
    )


def with_subscriber(evidence: Evidence, **changes: object) -> Evidence:
    changed = dataclasses.replace(evidence.subscribers[0], **changes)
    return dataclasses.replace(evidence, subscribers=[changed])


def received(evidence: Evidence) -> list[tuple[int, int]]:
    return list(evidence.subscribers[0].received[MASTER])


@pytest.mark.parametrize("refuse", [False, True])
@pytest.mark.parametrize("withhold", [False, True])
def test_sound_books_have_no_difference(refuse: bool, withhold: bool) -> None:
    evidence = sound_evidence(refuse=refuse, withhold=withhold)
    found = reconcile(evidence)
    assert found.differences == []
    assert found.acknowledged == found.logged == found.archived == len(evidence.log[MASTER]) > 100
    assert found.expected == found.received == found.acknowledged - withhold
    assert found.withheld == withhold


def lose_from(store: str) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        entries = getattr(evidence, store)[MASTER]
        return dataclasses.replace(evidence, **{store: {MASTER: entries[:50] + entries[51:]}})

    return change


def double_in(store: str) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        entries = getattr(evidence, store)[MASTER]
        return dataclasses.replace(evidence, **{store: {MASTER: [*entries, entries[-1]]}})

    return change


def alter_in_archive(evidence: Evidence) -> Evidence:
    entries = list(evidence.archive[MASTER])
    entries[20] = dataclasses.replace(entries[20], digest=b"otherwise")
    return dataclasses.replace(evidence, archive={MASTER: entries})


def never_deliver(evidence: Evidence) -> Evidence:
    positions = received(evidence)
    return with_subscriber(evidence, received={MASTER: positions[:30] + positions[31:]})


def deliver_twice(evidence: Evidence) -> Evidence:
    positions = received(evidence)
    return with_subscriber(evidence, received={MASTER: [*positions, positions[-1]]})


def deliver_out_of_order(evidence: Evidence) -> Evidence:
    positions = received(evidence)
    positions[10], positions[11] = positions[11], positions[10]
    return with_subscriber(evidence, received={MASTER: positions})


def tell_a_gap_that_is_not(evidence: Evidence) -> Evidence:
    gap = ToldGap(MASTER, (1, 5), (1, 6), position_pb2.GAP_REASON_LOG_LOST)
    return with_subscriber(evidence, gaps=[gap])


def withhold_without_a_pause(evidence: Evidence) -> Evidence:
    gap = ToldGap(MASTER, (1, 5), (1, 5), position_pb2.GAP_REASON_WITHHELD)
    return with_subscriber(evidence, gaps=[gap])


def withhold_a_close(evidence: Evidence) -> Evidence:
    close = next(e.position for e in evidence.log[MASTER] if e.signal.kind == signal_pb2.SIGNAL_KIND_CLOSE)
    positions = [at for at in received(evidence) if at != close]
    gap = ToldGap(MASTER, close, close, position_pb2.GAP_REASON_WITHHELD)
    return with_subscriber(evidence, gaps=[gap], was_paused=True, received={MASTER: positions})


def hold_what_is_closed(evidence: Evidence) -> Evidence:
    holdings = evidence.subscribers[0].holdings[MASTER]
    more = Holdings({**holdings.positions, 999: (signal_pb2.SIDE_BUY, 100)}, holdings.orders)
    return with_subscriber(evidence, holdings={MASTER: more})


def open_after_the_pause(evidence: Evidence) -> Evidence:
    return with_subscriber(evidence, was_paused=True, late_openings=3)


def store_an_old_snapshot(evidence: Evidence) -> Evidence:
    return dataclasses.replace(evidence, snapshots={MASTER: snapshot_pb2.Snapshot()})


def resync_without_a_pause(evidence: Evidence) -> Evidence:
    kept = received(evidence)
    return with_subscriber(
        evidence,
        full_syncs=[ToldGap(MASTER, kept[10], kept[19], 0)],
        received={MASTER: kept[:10] + kept[20:]},
    )


def hold_more_after_a_full_sync(evidence: Evidence) -> Evidence:
    synced = resync_without_a_pause(hold_what_is_closed(evidence))
    return with_subscriber(synced, was_paused=True)


def test_a_full_sync_after_a_pause_explains_what_it_covers() -> None:
    evidence = with_subscriber(resync_without_a_pause(sound_evidence()), was_paused=True)
    found = reconcile(evidence)
    assert found.differences == []
    assert found.resynced == 10
    assert found.expected == found.received == found.acknowledged - 10


def unbalance(evidence: Evidence) -> Evidence:
    return dataclasses.replace(evidence, ledger_balanced=False)


@pytest.mark.parametrize(
    ("break_it", "counter"),
    [
        (lose_from("log"), None),
        (lose_from("archive"), None),
        (double_in("log"), None),
        (double_in("archive"), None),
        (alter_in_archive, None),
        (never_deliver, "missing"),
        (deliver_twice, "duplicates"),
        (deliver_out_of_order, "unordered"),
        (tell_a_gap_that_is_not, "unexplained_gaps"),
        (withhold_without_a_pause, "unexplained_gaps"),
        (withhold_a_close, "unexplained_gaps"),
        (hold_what_is_closed, "mismatched_positions"),
        (store_an_old_snapshot, None),
        (open_after_the_pause, None),
        (resync_without_a_pause, None),
        (hold_more_after_a_full_sync, "mismatched_positions"),
        (unbalance, None),
    ],
)
def test_every_kind_of_difference_is_noticed(
    break_it: Callable[[Evidence], Evidence], counter: str | None
) -> None:
    found: Reconciliation = reconcile(break_it(sound_evidence()))
    assert found.difference_count > 0
    assert found.differences
    if counter:
        assert getattr(found, counter) > 0
