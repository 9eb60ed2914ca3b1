"""The subscriber's synchronous facade in the hands of programs that block, die, close at odd moments or are slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ecp_client.account import HoldingState
from ecp_client.copying import Decision, Reason, Step
from ecp_client.errors import ClientError, ClosedError, JournalError, WrongThreadError
from ecp_client.subscriber import (
    Batch,
    Resynced,
    Start,
    StreamOpened,
    SubscriberEvent,
    SubscriberThread,
)
from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from tests.integration.clients.application import FOREVER, WAIT_SECONDS, settings
from tests.integration.clients.scripted_server import says, serving, signals, snapshot
from tests.unit.clients.made import sequenced, signal


class Blocked(threading.Thread):
    """Calls something that blocks, and keeps what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.raised: Exception | None = None
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except Exception as error:
            self.raised = error

    def ended(self) -> Exception | None:
        self.join(WAIT_SECONDS)
        assert not self.is_alive()
        return self.raised


async def test_a_poll_that_waits_ends_when_another_thread_closes() -> None:
    async with serving(says(signals(1))) as server:

        def follow() -> None:
            client = SubscriberThread(settings(server))
            client.start()
            assert client.poll(WAIT_SECONDS) is not None
            waiting = Blocked(lambda: client.poll(FOREVER))
            client.close()
            assert isinstance(waiting.ended(), ClosedError)

        await asyncio.to_thread(follow)


async def test_what_came_before_the_close_can_be_polled_after_it() -> None:
    async with serving(says(signals(1), signals(2))) as server:

        def follow() -> None:
            with SubscriberThread(settings(server)) as client:
                client.wait_position(1, 2, WAIT_SECONDS)
            polled = [client.poll(WAIT_SECONDS), client.poll(WAIT_SECONDS)]
            assert [batch.signals[0].sequence for batch in polled if batch] == [1, 2]
            with pytest.raises(ClosedError):
                client.poll()

        await asyncio.to_thread(follow)


async def test_a_client_that_had_to_stop_says_so_when_it_is_polled(tmp_path: Path) -> None:
    async with serving(says(signals(1), signals(2))) as server:

        def follow() -> None:
            with SubscriberThread(settings(server, journal_folder=tmp_path)) as client:
                assert client._subscriber._journal is not None

                def full(_entries: bytes) -> None:
                    raise JournalError("the disk is full")

                client._subscriber._journal.append = full
                with pytest.raises(JournalError, match="disk is full"):
                    client.poll(WAIT_SECONDS)

        await asyncio.to_thread(follow)


async def test_a_closed_client_says_so_whatever_it_is_asked() -> None:
    async with serving(says(signals(1))) as server:

        def follow() -> None:
            client = SubscriberThread(settings(server))
            client.close()
            calls: list[Callable[[], object]] = [
                client.start,
                client.disconnect,
                lambda: client.closed_by_user(1, 1),
                lambda: client.resync(1),
                lambda: client.wait_position(1, 1, 1.0),
                lambda: client.set_license_token("another"),
            ]
            for call in calls:
                with pytest.raises(ClosedError):
                    call()

        await asyncio.to_thread(follow)


async def test_a_callback_that_would_wait_for_itself_is_told_so_at_once() -> None:
    raised: list[ClientError] = []

    async with serving(says(signals(1))) as server:

        def follow() -> None:
            def attempt(call: Callable[[], object]) -> None:
                try:
                    call()
                except ClientError as error:
                    raised.append(error)

            def on_event(event: SubscriberEvent) -> None:
                if isinstance(event, StreamOpened):
                    attempt(client.close)

            def protection(_one: object, _decision: Decision) -> Reason:
                attempt(lambda: client.wait_position(1, 9, WAIT_SECONDS))
                attempt(lambda: client.poll(WAIT_SECONDS))
                return Reason.NONE

            client = SubscriberThread(settings(server), on_event=on_event, protection=protection)
            with client:
                assert client.poll(WAIT_SECONDS) is not None
            with pytest.raises(ClosedError):
                client.poll()

        await asyncio.to_thread(follow)
    assert [type(error) for error in raised] == [WrongThreadError] * 3


async def test_what_was_not_polled_yet_does_not_count_as_closed_by_hand() -> None:
    """The terminal cannot have what the program was not given or is opening, nor be rid of what it is closing."""
    first = signals(1, 2)
    then = pb.SubscribeResponse()
    then.signals.signals.append(sequenced(signal(signal_pb2.SIGNAL_KIND_CLOSE, 1), 3))
    then.signals.signals.append(sequenced(signal(signal_pb2.SIGNAL_KIND_OPEN, 3), 4))
    last = snapshot(4)
    for ticket in (2, 3):
        last.snapshot.snapshot.positions.add(
            position_id=ticket, symbol="EURUSD", side=1, volume_lots_e8=10_000_000, open_price_e8=110_000_000
        )
    events: list[SubscriberEvent] = []
    async with serving(says(first), says(then), says(last)) as server:

        def states(client: SubscriberThread) -> dict[int, HoldingState]:
            holdings = client.copier(1).account.holdings
            return {ticket: holding.state for ticket, holding in holdings.items()}

        def synced(client: SubscriberThread, count: int) -> list[Resynced]:
            client.resync(1)
            while len(found := [event for event in events if isinstance(event, Resynced)]) < count:
                threading.Event().wait(0.01)
            return found

        def follow() -> None:
            given = settings(server)
            held_by_terminal: set[int] = {1}
            client = SubscriberThread(
                given, on_event=events.append, held_positions=lambda _master: held_by_terminal
            )
            with client:
                # The program opened 1 and is still busy with 2, of the same batch.
                polled = client.poll(WAIT_SECONDS)
                assert isinstance(polled, Batch)
                client.disconnect()
                client.wait_position(1, 4, WAIT_SECONDS)
                (resynced,) = synced(client, 1)
                assert not resynced.plan
                assert states(client) == {2: HoldingState.HELD, 3: HoldingState.HELD}
                # Now it asks for more: it has done with all before, and 2 is not there.
                while client.poll() is not None:
                    pass
                held_by_terminal -= {1}
                held_by_terminal |= {3}
                synced(client, 2)
                assert states(client) == {2: HoldingState.CLOSED_BY_USER, 3: HoldingState.HELD}

        await asyncio.to_thread(follow)


async def test_a_full_syncs_plan_comes_in_its_place_among_the_signals() -> None:
    """Done earlier, it would be undone by what was decided before it and polled after it."""
    last = snapshot(2)
    last.snapshot.snapshot.positions.add(
        position_id=2, symbol="EURUSD", side=1, volume_lots_e8=10_000_000, open_price_e8=110_000_000
    )
    async with serving(says(signals(1, 2)), says(last, signals(3))) as server:

        def follow() -> list[object]:
            seen: list[object] = []
            with SubscriberThread(settings(server)) as client:
                client.wait_position(1, 2, WAIT_SECONDS)
                client.resync(1)
                client.wait_position(1, 3, WAIT_SECONDS)
                for _ in range(3):
                    batch = client.poll(WAIT_SECONDS)
                    assert batch is not None
                    seen += [one.sequence for one in batch.signals]
                    if batch.resynced is not None:
                        seen += [(action.step, action.ticket) for action in batch.resynced.plan.actions]
            return seen

        assert await asyncio.to_thread(follow) == [1, 2, (Step.CLOSE, 1), 3]


@pytest.mark.parametrize("answer", [["1"], iter([1]), 5, [9.0], {"1": 2}])
async def test_held_positions_that_are_no_tickets_are_not_known(answer: object) -> None:
    """As strings, no ticket would be found among them, and everything would count as closed by hand."""
    last = snapshot(1)
    last.snapshot.snapshot.positions.add(
        position_id=1, symbol="EURUSD", side=1, volume_lots_e8=10_000_000, open_price_e8=110_000_000
    )
    async with serving(says(signals(1)), says(last, signals(2))) as server:

        def follow() -> None:
            given = settings(server, start=Start.BEGINNING)
            with SubscriberThread(given, held_positions=lambda _master: answer) as client:
                client.wait_position(1, 1, WAIT_SECONDS)
                client.resync(1)
                client.wait_position(1, 2, WAIT_SECONDS)
                assert client.stats.callback_errors == 1
                assert {entry.position_id for entry in client.copier(1).account.held()} == {1, 2}

        await asyncio.to_thread(follow)


@pytest.mark.parametrize("answer", [True, False, None, "no", 77])
async def test_a_protection_that_answers_with_no_reason_refuses(answer: object) -> None:
    async with serving(says(signals(1))) as server:

        def follow() -> None:
            with SubscriberThread(settings(server), protection=lambda *_: answer) as client:
                batch = client.poll(WAIT_SECONDS)
                assert batch is not None
                assert batch.decisions[0].reason is Reason.PROTECTION_FAILED
                assert client.stats.callback_errors == 1

        await asyncio.to_thread(follow)
