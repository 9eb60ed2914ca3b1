"""The demo's plot: who does what when, from the first process to the last comparison of books."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from execution.ledger.v1 import license_service_pb2, license_service_pb2_grpc
from execution.risk.v1 import risk_service_pb2, risk_service_pb2_grpc
from mesh.connection import Connection, RefusedError, describe
from mesh.demo import cast, evidence, stores
from mesh.demo.board import Board, MasterRow, ServiceRow, SubscriberRow
from mesh.demo.cast import Behaviour
from mesh.demo.child import Player, playing
from mesh.demo.provision import MasterCredentials, Provisioner, SubscriberCredentials
from mesh.demo.reconcile import reconcile
from mesh.demo.report import Report
from mesh.demo.wire import Message
from mesh.errors import ConfigurationError, MeshError
from mesh.open_files import require_open_files
from mesh.running import Mesh, MeshOptions, running

CHECK_INTERVAL_SECONDS = 2.0
CUT_AT, CUT_FOR_SECONDS_MAX, ROTATE_AT = 0.25, 5.0, 0.5
LICENSE_OVERLAP_SECONDS = 2
READY_SECONDS_MAX = 60.0
FINISH_SECONDS_MAX = 180.0
CHECKS_TO_PAUSE, CHECK_SECONDS_MAX = 2, 60.0
TRUST_POLL_SECONDS = 1.0
BOARD_SECONDS = 0.25
# Their process has two connections and the files of a journal for each.
FILES_PER_SUBSCRIBER, SPARE_FILES = 5, 100


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How long, how fast (signals a second of all masters together), and for how many subscribers."""

    seconds: float
    rate: float
    subscribers: int
    data: Path | None = None


@dataclass(slots=True)
class Demo:
    """One run of the demo on a running mesh."""

    options: DemoOptions
    mesh: Mesh
    board: Board
    masters: list[MasterCredentials] = field(default_factory=list)
    subscribers: list[SubscriberCredentials] = field(default_factory=list)
    _connection: Connection = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _refused: int = 0

    def __post_init__(self) -> None:
        self._connection = Connection(self.mesh.grpc, self.mesh.operator_token)

    @property
    def _folder(self) -> Path:
        return (self.mesh.data or self.mesh.folder) / "demo"

    async def run(self) -> Report:
        """Plays everything and compares the books.

        Raises:
            MeshError: something did not start, or did not end in time.
        """
        self._make_folder()
        await asyncio.to_thread(self._provision)
        async with (
            self._background(),
            self._playing("subscribers", self._subscribers_spec()) as followers,
            self._playing("masters", self._masters_spec()) as traders,
        ):
            self.board.phase = "connecting"
            await followers.hear("ready", seconds_max=READY_SECONDS_MAX)
            await traders.hear("ready", seconds_max=READY_SECONDS_MAX)
            await self._trade(traders, followers)
            self.board.phase = "finishing"
            ended = await traders.hear("ended", seconds_max=FINISH_SECONDS_MAX)
            await followers.tell("finish", heads=ended["heads"])
            closed = await followers.hear("closed", seconds_max=FINISH_SECONDS_MAX)
            await self._last_checks()
        self.board.phase = "reconciling"
        return await self._reconcile(closed)

    def _playing(self, name: str, spec: dict[str, Any]) -> AbstractAsyncContextManager[Player]:
        return playing(name, spec, self._folder, self._hear, sockets=self.mesh.folder)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir()
        except OSError as error:
            raise ConfigurationError(
                f"cannot make {self._folder} ({error.strerror}): give --data a new folder"
            ) from error

    def _provision(self) -> None:
        self.board.phase = "opening accounts"
        provisioner = Provisioner(self._connection, uuid.uuid4().hex[:8])
        try:
            self.masters += [provisioner.master(role) for role in cast.masters()]
            for role in cast.subscribers(self.options.subscribers):
                self.subscribers.append(provisioner.subscriber(role, self.masters))
        except grpc.RpcError as error:
            raise RefusedError(f"the ledger refused the demo's cast: {describe(error)}") from error
        for master in self.masters:
            self.board.masters[master.role.name] = MasterRow(master.role.name, "")
        for one in self.subscribers:
            self.board.subscribers[one.role.name] = SubscriberRow(one.role.name, one.role.behaviour)

    def _masters_spec(self) -> dict[str, Any]:
        return {
            "front_door": self.mesh.front_door,
            "seconds": self.options.seconds,
            "rate": self.options.rate,
            "masters": [
                {
                    "name": one.role.name, "strategy": one.role.strategy, "master_id": one.master_id,
                    "key_id": one.key_id, "secret": base64.b64encode(one.secret).decode(),
                    "license_token": one.license_token,
                }
                for one in self.masters
            ],
        }  # fmt: skip

    def _subscribers_spec(self) -> dict[str, Any]:
        return {
            "fanout": self.mesh.grpc["fanout"],
            "risk": self.mesh.grpc["risk"],
            "subscribers": [
                {
                    "name": one.role.name, "behaviour": one.role.behaviour.value, "license_token": one.license_token,
                    "volume_percent": one.role.volume_percent, "master_ids": one.master_ids,
                }
                for one in self.subscribers
            ],
        }  # fmt: skip

    async def _trade(self, traders: Player, followers: Player) -> None:
        self.board.phase = "trading"
        self._started = time.monotonic()
        await traders.tell("go")
        async with asyncio.TaskGroup() as plot:
            plot.create_task(self._cut(followers))
            plot.create_task(self._rotate(followers))
            plot.create_task(asyncio.sleep(self.options.seconds))

    async def _cut(self, followers: Player) -> None:
        await asyncio.sleep(self.options.seconds * CUT_AT)
        victim = self._player(Behaviour.CUT_OFF).role.name
        self.board.tell(f"{victim}: the cable is cut")
        await followers.tell("cut", name=victim)
        await asyncio.sleep(min(self.options.seconds * 0.2, CUT_FOR_SECONDS_MAX))
        await followers.tell("mend", name=victim)
        self.board.tell(f"{victim}: the cable is mended")

    async def _rotate(self, followers: Player) -> None:
        await asyncio.sleep(self.options.seconds * ROTATE_AT)
        one = self._player(Behaviour.ROTATES)
        token = await self._rotated(one.license_id)
        await followers.tell("token", name=one.role.name, token=token)
        self.board.tell(
            f"{one.role.name}: has a new license; the old one ends in {LICENSE_OVERLAP_SECONDS} s"
        )

    async def _rotated(self, license_id: str) -> str:
        stub = self._connection.stub("ledger", license_service_pb2_grpc.LicenseServiceStub)

        def rotate() -> str:
            # A new key for each try: the answer to a repeat carries no token.
            request = license_service_pb2.RotateLicenseRequest(
                request_id=uuid.uuid4().hex,
                license_id=license_id,
                overlap=Duration(seconds=LICENSE_OVERLAP_SECONDS),
            )
            return stub.RotateLicense(request).token

        return await self._persistently(rotate)

    async def _persistently(self, call: Callable[[], str]) -> str:
        """Makes a call again while a service is away: the demo goes on though one is killed."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            try:
                return await asyncio.to_thread(call)
            except grpc.RpcError as error:
                if time.monotonic() > deadline:
                    raise RefusedError(describe(error)) from error
                await asyncio.sleep(TRUST_POLL_SECONDS)

    async def _last_checks(self) -> None:
        """Lets risk look at everything that was reported; a pause needs two checks that agree."""
        stub = self._connection.stub("risk", risk_service_pb2_grpc.RiskServiceStub)

        def check() -> str:
            stub.RunCheck(risk_service_pb2.RunCheckRequest(), timeout=CHECK_SECONDS_MAX)
            return "checked"

        for _ in range(CHECKS_TO_PAUSE):
            await self._persistently(check)

    def _player(self, behaviour: Behaviour) -> SubscriberCredentials:
        return next(one for one in self.subscribers if one.role.behaviour is behaviour)

    def _hear(self, message: Message) -> None:
        board = self.board
        match message["kind"]:
            case "masters":
                for row in message["rows"]:
                    board.masters[row["name"]] = MasterRow(**row)
                board.signals_per_second = message["signals_per_second"]
            case "subscribers":
                for row in message["rows"]:
                    known = board.subscribers[row["name"]]
                    known.state, known.received, known.refused = row["state"], row["received"], row["refused"]
                board.deliveries_per_second = message["deliveries_per_second"]
                for text in message["events"]:
                    board.tell(text)
                board.latency_p50_ms, board.latency_p99_ms = message["p50_ms"], message["p99_ms"]

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._watch_services()), asyncio.create_task(self._watch_trust())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_services(self) -> None:
        told: dict[str, str] = {}
        while True:
            self.board.elapsed_seconds = time.monotonic() - self._started
            for service in self.mesh.services.values():
                row = self.board.services.setdefault(service.name, ServiceRow(service.name))
                if service.restarts > row.restarts:
                    self.board.tell(f"{service.name} died and was started again")
                row.state, row.restarts = service.state, service.restarts
            for name, trouble in self.mesh.troubles.items():
                if told.get(name) != trouble:
                    self.board.tell(f"{name} died and does not start again: {trouble}")
            told = dict(self.mesh.troubles)
            await asyncio.sleep(BOARD_SECONDS)

    async def _watch_trust(self) -> None:
        stub = self._connection.stub("risk", risk_service_pb2_grpc.RiskServiceStub)
        names = {one.user_id: one.role.name for one in self.subscribers}
        while True:
            await asyncio.sleep(TRUST_POLL_SECONDS)
            with contextlib.suppress(grpc.RpcError):
                request = risk_service_pb2.ListAtRiskRequest(score_below=100, page_size=1000)
                answer = await asyncio.to_thread(stub.ListAtRisk, request)
                self._note_trust(
                    {names[user.user_id]: user.score for user in answer.users if user.user_id in names}
                )

    def _note_trust(self, scores: dict[str, float]) -> None:
        for name, score in scores.items():
            row = self.board.subscribers[name]
            if score < 50 <= (100 if row.trust is None else row.trust):
                self.board.tell(f"{name}: trust fell to {score:.0f}")
            row.trust = score

    async def _reconcile(self, closed: Message) -> Report:
        async with stores.opened(self.mesh.database_url, self.mesh.redis_url) as opened:
            books = await evidence.collect(opened, self._folder, self.masters, self.subscribers)
        found = await asyncio.to_thread(reconcile, books)
        paused = sorted(one.name for one in books.subscribers if one.was_paused)
        return Report(
            seconds=self.options.seconds,
            rate_wanted=self.options.rate,
            found=found,
            ledger_balanced=books.ledger_balanced,
            latency_ms=closed["latency_ms"],
            masters=len(self.masters),
            subscribers=len(self.subscribers),
            paused=paused,
            cheating=[self._player(Behaviour.CHEATS).role.name],
            unfinished=closed["unfinished"],
            restarts={service.name: service.restarts for service in self.mesh.services.values()},
            signals_refused=sum(len(book.declared_gaps) for book in books.masters),
        )

    def close(self) -> None:
        """Closes the connections."""
        self._connection.close()


async def play(options: DemoOptions, board: Board, *, show: Callable[[Board], None]) -> Report:
    """Starts a mesh of its own, plays the demo on it, and stops it. `show` is called a few times a second.

    Raises:
        ConfigurationError: the system does not let a process open enough files, or something is not fit to start.
        MeshError: something did not start, or did not end in time.
    """
    files = SPARE_FILES + FILES_PER_SUBSCRIBER * options.subscribers
    require_open_files(files, what=f"a demo with {options.subscribers} subscribers")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, asyncio.create_task(_show(board, show)))
        mesh = await stack.enter_async_context(
            running(MeshOptions(options.data, check_interval_seconds=CHECK_INTERVAL_SECONDS))
        )
        demo = Demo(options, mesh, board)
        stack.callback(demo.close)
        try:
            report = await demo.run()
        except* MeshError as group:
            raise group.exceptions[0] from None
        return report


async def _show(board: Board, show: Callable[[Board], None]) -> None:
    while True:
        show(board)
        await asyncio.sleep(BOARD_SECONDS)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
