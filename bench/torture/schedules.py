"""`ecp torture schedules`: random schedules on real processes, and a judge of what every follower's journal says.

Each schedule has masters and followers of its own on a stage that all schedules share. When its acts are over,
everything is mended and everybody must come to have everything; whoever does not is silently behind.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from bench.torture.masters import WatchedMaster
from bench.torture.schedule_followers import Follower, follower
from bench.torture.schedule_judge import Truth, judge
from bench.torture.schedule_plan import Act, Kind, Schedule, Sizes
from bench.torture.schedule_stage import MasterLogin, Stage, stage
from ecp_client.master.handshake import Identity
from ecp_client.subscriber.journal import read_journal
from execution.common.v1.position_pb2 import DURABILITY_APPENDED
from execution.ledger.v1 import subscription_service_pb2 as ledger_pb
from mesh.errors import MeshError
from services.common import tasks

_SETTLE_SECONDS: Final = 45.0
_SESSION_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.02
_PROBLEMS_SHOWN: Final = 20


@dataclass(slots=True)
class Outcome:
    """What one schedule led to; sound when `problems` is empty."""

    schedule: dict[str, Any]
    seconds: float = 0.0
    settle_seconds: float = 0.0
    """From the last act until everybody had everything."""
    signals: int = 0
    deliveries: int = 0
    missing: int = 0
    """Sequences that followers were told are lost, and were."""
    withheld: int = 0
    """Sequences that a pause kept from followers."""
    synced_over: int = 0
    """Sequences that a snapshot stood for."""
    full_syncs: int = 0
    streams: int = 0
    losses: int = 0
    """Masters whose log came back with less than was acknowledged."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether model and journals agree."""
        return not self.problems


@dataclass(slots=True)
class SchedulesReport:
    """All outcomes."""

    options: dict[str, Any]
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether every schedule was."""
        return all(one.is_sound for one in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"is_sound": self.is_sound, **asdict(self)}

    def summary(self) -> list[str]:
        """For people."""
        outcomes = self.outcomes
        total = {name: sum(getattr(one, name) for one in outcomes) for name in _SUMMED}
        settle = max((one.settle_seconds for one in outcomes), default=0.0)
        lines = [
            f"{len(outcomes)} schedules in {self.seconds:.0f} s: {total['signals']:,} signals,"
            f" {total['deliveries']:,} deliveries over {total['streams']:,} streams",
            f"{total['losses']} losses of the log; {total['missing']:,} signals told as missing,"
            f" {total['withheld']:,} withheld by pauses,"
            f" {total['synced_over']:,} covered by {total['full_syncs']:,} full syncs; settled within {settle:.1f} s",
        ]
        for one in outcomes:
            seed = one.schedule["seed"]
            lines += [f"VIOLATION seed {seed}: {text}" for text in one.problems[:_PROBLEMS_SHOWN]]
            if not one.is_sound:
                lines.append(f"its schedule: {json.dumps(one.schedule)}")
        return [*lines, "sound" if self.is_sound else "NOT SOUND"]


_SUMMED: Final = (
    "signals",
    "deliveries",
    "streams",
    "losses",
    "missing",
    "withheld",
    "synced_over",
    "full_syncs",
)


@dataclass(slots=True)
class _Run:
    """One schedule under way."""

    stage: Stage
    masters: list[WatchedMaster]
    truths: dict[int, Truth]
    followers: list[Follower]
    resynced: set[int] = field(default_factory=set)
    _fanouts: dict[int, asyncio.Lock] = field(default_factory=dict)
    _beside: set[asyncio.Task[None]] = field(default_factory=set)

    async def act(self, act: Act) -> None:
        """Does one thing. What takes long goes on beside the next acts, but for what concerns the log."""
        match act.kind:
            case Kind.CONNECT:
                await self.followers[act.who].connect(act.place)
            case Kind.LEAVE:
                await self.followers[act.who].leave()
            case Kind.DROP:
                self.followers[act.who].drop(act.seconds)
            case Kind.STALL:
                self.followers[act.who].stall(act.seconds)
            case Kind.TRIM:
                await self.stage.trim_log()
            case Kind.DRAIN:
                self._replace(act.who, signal.SIGTERM)
            case Kind.KILL:
                self._replace(act.who, signal.SIGKILL)
            case Kind.SAVE:
                await self.stage.save_log()
            case Kind.RESTORE:
                await self._lose()
            case Kind.TEAR:
                await self._lose(bytes_torn=act.bytes_torn)
            case Kind.PAUSE:
                await self._pause(self.followers[act.who], act.place, act.seconds)
            case Kind.RESYNC:
                await self._resync(self.masters[act.who].master_id)

    async def over(self) -> None:
        """Waits until every fan-out process that was ended has its successor, and every pause is over."""
        await asyncio.gather(*self._beside)

    def _replace(self, number: int, how: signal.Signals) -> None:
        async def replace() -> None:
            async with self._fanouts.setdefault(number, asyncio.Lock()):
                await self.stage.replace_fanout(number, how)

        self._beside.add(asyncio.create_task(replace()))

    async def _pause(self, one: Follower, scope: str, seconds: float) -> None:
        one.was_paused = True
        for subscription_id in one.login.subscriptions.values():
            await self.stage.pause(subscription_id, scope)

        async def resume() -> None:
            await asyncio.sleep(seconds)
            for subscription_id in one.login.subscriptions.values():
                await self.stage.resume(subscription_id)

        self._beside.add(asyncio.create_task(resume()))

    async def _lose(self, *, bytes_torn: int = 0) -> None:
        """Lets the log come back with less, and notes what each master's log lacks once the master has spoken."""
        openings = {one.master_id: len(one.openings) for one in self.masters}
        ends = await self.stage.lose_log(bytes_torn=bytes_torn)
        for one in self.masters:
            before = openings[one.master_id]
            await _until(
                lambda one=one, before=before: len(one.openings) > before,  # type: ignore[misc]  # bound here
                _SESSION_SECONDS,
                lambda one=one: f"master {one.master_id} opened no session",  # type: ignore[misc]  # bound here
            )
            kept = ends.get(one.master_id, 0)
            for opening in one.openings[before:]:
                if opening.new_epoch and opening.sequence > kept:
                    self.truths[one.master_id].lost.append((kept + 1, opening.sequence))

    async def _resync(self, master_id: int) -> None:
        self.resynced.add(master_id)
        try:
            await self.stage.ask_for_full_syncs(master_id)
        except grpc.aio.AioRpcError as error:
            raise MeshError(f"a full sync was refused: {error.details()}") from error


@asynccontextmanager
async def _running(stage: Stage, plan: Schedule, sizes: Sizes, rate: float) -> AsyncIterator[_Run]:
    stage.forget_saved()
    folder = stage.folder / f"schedule-{plan.seed}-{time.monotonic_ns()}"
    folder.mkdir()
    logins = [await stage.master() for _ in range(sizes.masters)]
    addresses = [one.spec.grpc_address for one in stage.fanouts]
    async with AsyncExitStack() as stack:
        masters = [_master(stage, login, folder) for login in logins]
        for one in masters:
            await stack.enter_async_context(one.master)
        followers = [
            await stack.enter_async_context(follower(number, await stage.follower(logins), addresses, folder))
            for number in range(sizes.followers)
        ]
        truths = {one.master_id: Truth(one.master_id) for one in masters}
        yield _Run(stage, masters, truths, followers)


def _master(stage: Stage, login: MasterLogin, folder: Path) -> WatchedMaster:
    who = Identity(login.master_id, login.key_id, login.secret, login.license_token, "schedule")
    return WatchedMaster(stage.front_door, login.master_id, folder, DURABILITY_APPENDED, who)


async def play(stage: Stage, plan: Schedule, sizes: Sizes, *, signals_per_second: float) -> Outcome:
    """One schedule, from its first act to the verdict."""
    started = time.monotonic()
    outcome = Outcome(plan.as_json())
    async with _running(stage, plan, sizes, signals_per_second) as run:
        try:
            async with tasks.background(
                *(one.trade(signals_per_second / sizes.masters) for one in run.masters)
            ):
                for act in plan.acts:
                    await asyncio.sleep(act.pause_seconds)
                    await run.act(act)
                await run.over()
            outcome.settle_seconds = await _settle(run)
        except (MeshError, TimeoutError) as error:
            outcome.problems.append(str(error))
        await _check_ledger(run, outcome)
        for one in run.followers:
            await one.leave()
    _judge_all(run, outcome)
    outcome.seconds = round(time.monotonic() - started, 2)
    return outcome


async def _settle(run: _Run) -> float:
    """Mends everything and waits until everybody has everything; how long that took.

    Raises:
        MeshError: somebody is still behind after a long time.
    """
    started = time.monotonic()
    for one in run.followers:
        await one.mended()
        await one.connect("beginning")
    async with asyncio.timeout(_SETTLE_SECONDS):
        await asyncio.gather(*(one.master.wait_all_acknowledged() for one in run.masters))
    heads = {one.master_id: one.master.last_sequence for one in run.masters}

    def behind() -> str:
        return "; ".join(text for one in run.followers if (text := one.behind(heads)))

    await _until(lambda: not behind(), _SETTLE_SECONDS, behind)
    return round(time.monotonic() - started, 2)


async def _until(condition: Callable[[], bool], seconds_max: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise MeshError(f"after {seconds_max:.0f} s: {what()}")
        await asyncio.sleep(_POLL_SECONDS)


async def _check_ledger(run: _Run, outcome: Outcome) -> None:
    """Everybody is in step by the ledger's books too, and each transition follows from the one before."""
    deadline = time.monotonic() + (_SETTLE_SECONDS if outcome.is_sound else 0)
    for one in run.followers:
        for master_id, subscription_id in one.login.subscriptions.items():
            found = await run.stage.subscription(subscription_id)
            while not _is_in_step(found) and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_SECONDS)
                found = await run.stage.subscription(subscription_id)
            if not _is_in_step(found):
                state = ledger_pb.SyncState.Name(found.sync_state)
                outcome.problems.append(
                    f"{one.name}, master {master_id}: the ledger says {state} ({found.sync_reason}),"
                    f" full sync {found.full_sync_due or 'not'} due"
                )
            outcome.problems += _broken_chain(one.name, await run.stage.transitions(subscription_id))


def _is_in_step(found: ledger_pb.Subscription) -> bool:
    return found.sync_state == ledger_pb.SYNC_STATE_SYNCED and not found.full_sync_due


def _broken_chain(name: str, transitions: Iterable[ledger_pb.SubscriptionTransition]) -> list[str]:
    state = ledger_pb.SYNC_STATE_UNSPECIFIED
    for one in transitions:
        if one.kind != ledger_pb.TRANSITION_KIND_SYNC:
            continue
        if one.sync_before != state:
            return [f"{name}: a transition begins at {one.sync_before}, the one before ended at {state}"]
        state = one.sync_after
    return []


def _judge_all(run: _Run, outcome: Outcome) -> None:
    for master in run.masters:
        truth = run.truths[master.master_id]
        truth.head = master.master.last_sequence
        outcome.signals += truth.head
        outcome.losses += len(truth.lost)
        outcome.problems += master.problems
    for one in run.followers:
        entries = read_journal(one.journal_folder) if one.journal_folder.exists() else []
        outcome.streams += one.streams
        outcome.problems += one.problems
        for seen in judge(
            one.name,
            entries,
            run.truths,
            place=one.place,
            resynced=run.resynced,
            was_paused=one.was_paused,
        ):
            outcome.deliveries += seen.signals
            outcome.missing += seen.missing
            outcome.withheld += seen.withheld
            outcome.synced_over += seen.synced_over
            outcome.full_syncs += seen.full_syncs
            outcome.problems += seen.problems
    outcome.problems += run.stage.take_problems()


async def torture(
    plans: Iterable[Schedule],
    sizes: Sizes,
    *,
    signals_per_second: float,
    tell: Callable[[str], None],
    options: dict[str, Any] | None = None,
    keep: Path | None = None,
) -> SchedulesReport:
    """Plays schedules one after the other on one stage. `tell` gets a line for each.

    Logs and journals of those that are not sound are copied into `keep`.

    Raises:
        MeshError: the stage does not come up.
    """
    started = time.monotonic()
    report = SchedulesReport(options or {})
    async with stage(fanouts=sizes.fanouts) as real:
        for plan in plans:
            outcome = await play(real, plan, sizes, signals_per_second=signals_per_second)
            report.outcomes.append(outcome)
            if keep is not None and not outcome.is_sound:
                shutil.copytree(real.folder, keep / f"seed-{plan.seed}", dirs_exist_ok=True)
            verdict = "sound" if outcome.is_sound else f"NOT SOUND: {outcome.problems[0]}"
            tell(
                f"seed {plan.seed}: {outcome.seconds:.1f} s, {outcome.deliveries} deliveries,"
                f" {outcome.losses} losses, {outcome.missing} missing, {outcome.full_syncs} full syncs: {verdict}"
            )
    report.seconds = round(time.monotonic() - started, 1)
    return report
