"""A subscriber made of stock parts, betterproto2 messages over grpclib: it follows masters and prints every signal.

It keeps its positions in a file, acknowledges, notices by itself when something is missing, and comes back whatever
happens to the connection. `ecp up` prints a license; the address is that of fanout:

    python clients/betterproto/subscriber.py --fanout 127.0.0.1:50052 --plaintext --license ecp_... --master 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import betterproto2
import grpclib
from following import Following, Hole, Position, name_of, shown
from grpclib.client import Channel
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

from ecp_betterproto.execution.common.v1 import (
    MasterPosition,
    SequencedSignal,
    Side,
    Snapshot,
    StreamPosition,
)
from ecp_betterproto.execution.fanout.v1 import (
    AcknowledgeRequest,
    FanoutServiceAsyncStub,
    PositionUnavailable,
    SubscribeResponse,
)

CLIENT = "example-betterproto/1.0"
ACKNOWLEDGE_SECONDS = 1.0
ACKNOWLEDGED_MAX = 100
CALL_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 10.0
"""The server says something at least once a second; after this long nobody is there."""
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.1, 30.0
FULL_SYNC_SECONDS = 30.0
"""Between two attempts at a full sync; meanwhile the stream goes on."""
FINAL = (grpclib.Status.UNAUTHENTICATED, grpclib.Status.PERMISSION_DENIED, grpclib.Status.INVALID_ARGUMENT)
E8 = 100_000_000


def act(one: SequencedSignal) -> None:
    """Here a bridge would trade. A signal comes again if the process dies before its position is on disk."""
    assert one.signal is not None
    what = one.signal
    side = "" if what.side == Side.UNSPECIFIED else f" {what.side.name}"
    print(
        f"{one.master_id}/{one.epoch}/{one.sequence} after {one.previous_epoch}/{one.previous_sequence}:"
        f" {what.kind.name}{side} {what.symbol} {what.volume_lots_e8 / E8:g} lots at {what.price_e8 / E8:g},"
        f" position {what.position_id}"
    )


@dataclass
class RpcStatus(betterproto2.Message):
    """google.rpc.Status: what gRPC's error details come in."""

    code: int = betterproto2.field(1, betterproto2.TYPE_INT32)
    message: str = betterproto2.field(2, betterproto2.TYPE_STRING)
    details: list[RpcAny] = betterproto2.field(3, betterproto2.TYPE_MESSAGE, repeated=True)  # noqa: RUF009  # so they are made


@dataclass
class RpcAny(betterproto2.Message):
    """google.protobuf.Any."""

    type_url: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    value: bytes = betterproto2.field(2, betterproto2.TYPE_BYTES)


class Details(StatusDetailsCodecBase):
    """Reads the PositionUnavailable among an error's details."""

    def encode(self, status: grpclib.Status, message: str | None, details: object) -> bytes:
        """Clients send none."""
        raise NotImplementedError

    def decode(self, status: grpclib.Status, message: str | None, data: bytes) -> list[PositionUnavailable]:
        """What the server has instead of the positions that it cannot resume from."""
        name = "/execution.fanout.v1.PositionUnavailable"
        found = (one for one in RpcStatus.parse(data).details if one.type_url.endswith(name))
        return [PositionUnavailable.parse(one.value) for one in found]


@dataclass
class Subscriber:
    """One subscriber's streams, one after the other."""

    options: argparse.Namespace
    following: Following
    acknowledged: dict[int, Position] = field(default_factory=dict)
    reconnect_after_seconds: float | None = None
    """What a Drain asked for."""
    full_sync_at: float = 0.0
    failures: int = 0
    signals: int = 0

    async def run(self) -> int:
        """Follows until every subscription has ended, or so many signals came; returns the exit code."""
        while self.following.masters and not self.is_done:
            try:
                await self._stream()
            except GRPCError as error:
                print(f"stream ended: {error.status.name} {error.message}", flush=True)
                if error.status in FINAL:
                    return 1
                if error.status is grpclib.Status.OUT_OF_RANGE:
                    self.following.cannot_resume(error.details or [])
            except (StreamTerminatedError, OSError, TimeoutError) as error:
                print(f"stream ended: {error or type(error).__name__}", flush=True)
            if self.following.masters and not self.is_done:
                await asyncio.sleep(self._pause_seconds())
        return 0

    @property
    def is_done(self) -> bool:
        """Whether so many signals came as were asked for."""
        wanted: int = self.options.count
        return 0 < wanted <= self.signals

    def _pause_seconds(self) -> float:
        wait, self.reconnect_after_seconds = self.reconnect_after_seconds, None
        if wait is None:
            longest = min(RECONNECT_SECONDS_MAX, RECONNECT_SECONDS_MIN * 2**self.failures)
            self.failures = min(self.failures + 1, 16)
            wait = longest * random.uniform(0.5, 1.0)
        return wait

    async def _stream(self) -> None:
        """One stream, from connecting to its end."""
        host, _, port = self.options.fanout.rpartition(":")
        channel = Channel(host, int(port), ssl=tls(self.options), status_details_codec=Details())
        metadata = {"authorization": f"Bearer {self.options.license}"}
        stub = FanoutServiceAsyncStub(channel, metadata=metadata)
        acknowledging = asyncio.create_task(self._acknowledge_often(stub))
        try:
            await self._follow(stub)
        finally:
            acknowledging.cancel()
            with contextlib.suppress(GRPCError, StreamTerminatedError, OSError, TimeoutError):
                await self._acknowledge(stub)
            channel.close()

    async def _follow(self, stub: FanoutServiceAsyncStub) -> None:
        now = asyncio.get_running_loop().time
        full_sync = self.following.wants_full_sync and now() >= self.full_sync_at
        if full_sync:
            self.full_sync_at = now() + FULL_SYNC_SECONDS
        responses = stub.subscribe(self.following.request(CLIENT, full_sync=full_sync))
        async with contextlib.aclosing(cast("AsyncGenerator[SubscribeResponse]", responses)):
            while True:
                async with asyncio.timeout(SILENCE_SECONDS_MAX):
                    response = await anext(responses, None)
                if response is None:
                    return
                self.failures = 0
                if self._take(response):
                    self._keep()
                sys.stdout.flush()
                sync_is_due = self.following.wants_full_sync and now() >= self.full_sync_at
                if self.following.wants_new_stream or sync_is_due or self.is_done:
                    return

    def _take(self, response: SubscribeResponse) -> bool:
        """Takes one message; whether a position moved."""
        if response.signals is not None:
            for one in self.following.fresh(response.signals.signals):
                self._take_signal(one)
        elif response.progress is not None:
            return self.following.take_progress(response.progress)
        elif response.gap is not None:
            gap = response.gap
            if self.following.take_gap(gap):
                through = f"{shown(gap.from_)} to {shown(gap.to)}"
                print(f"gap of master {gap.master_id}: {through} will not come ({name_of(gap.reason)})")
        elif response.snapshot is not None and response.snapshot.snapshot is not None:
            self._take_snapshot(response.snapshot.snapshot)
        elif response.state_change is not None:
            change = response.state_change
            self.following.take_state(change)
            print(f"state of master {change.master_id}: {name_of(change.state)} {change.reason}")
        elif response.drain is not None:
            wait = response.drain.reconnect_after
            self.reconnect_after_seconds = 0.0 if wait is None else wait.total_seconds()
            print(f"drain: the server asks to come back in {self.reconnect_after_seconds:.2f} s")
            return False
        return True  # also for what is newer than this program

    def _take_snapshot(self, snapshot: Snapshot) -> None:
        if not self.following.take_snapshot(snapshot):
            return
        # Here a bridge would compare the account with it, and bring it in line.
        print(
            f"snapshot of master {snapshot.master_id} as of {shown(snapshot.as_of)}:"
            f" {len(snapshot.positions)} positions, {len(snapshot.orders)} orders"
        )

    def _take_signal(self, one: SequencedSignal | Hole) -> None:
        if isinstance(one, Hole):
            held, previous = one.held, one.previous
            print(
                f"hole in the stream of master {one.master_id}:"
                f" {held[0]}/{held[1]} is held, but {previous[0]}/{previous[1]} was sent"
            )
        else:
            act(one)
            self.signals += 1

    def _keep(self) -> None:
        """Puts the positions on disk, whole or not at all."""
        path: Path = self.options.positions
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(self.following.as_json()), encoding="utf-8")
        os.replace(new, path)

    async def _acknowledge_often(self, stub: FanoutServiceAsyncStub) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGE_SECONDS)
            # Positions are cumulative: what fails now is said again the next time.
            with contextlib.suppress(GRPCError, StreamTerminatedError, OSError, TimeoutError):
                await self._acknowledge(stub)

    async def _acknowledge(self, stub: FanoutServiceAsyncStub) -> None:
        held = {n: one.held for n, one in self.following.masters.items() if one.held is not None}
        moved = {n: position for n, position in held.items() if position != self.acknowledged.get(n)}
        new = dict(list(moved.items())[:ACKNOWLEDGED_MAX])
        if not new:
            return
        positions = [
            MasterPosition(master_id=n, position=StreamPosition(epoch=epoch, sequence=sequence))
            for n, (epoch, sequence) in new.items()
        ]
        await stub.acknowledge(AcknowledgeRequest(positions=positions), timeout=CALL_SECONDS_MAX)
        self.acknowledged.update(new)


def tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    """How the server is known; None for plaintext."""
    if options.plaintext:
        return None
    context = ssl.create_default_context(cafile=options.ca_file)
    context.set_alpn_protocols(["h2"])
    return context


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Follows masters and prints every signal.")
    parser.add_argument("--fanout", required=True, help="host:port")
    parser.add_argument("--license", default=os.environ.get("ECP_LICENSE"), help="or in ECP_LICENSE")
    parser.add_argument("--master", type=int, action="append", required=True, help="may be repeated")
    parser.add_argument("--start", choices=["beginning", "now", "snapshot"], default="now")
    parser.add_argument("--count", type=int, default=0, help="leave after so many signals; 0 is never")
    parser.add_argument("--positions", type=Path, default=Path("positions.json"), help="survives restarts")
    parser.add_argument("--plaintext", action="store_true", help="no TLS: for a mesh on this machine")
    parser.add_argument("--ca-file", type=Path, help="certificates to trust, PEM")
    options = parser.parse_args()
    options.license = (options.license or "").strip()
    if not options.license:
        parser.error("--license or ECP_LICENSE is required")
    return options


def kept(options: argparse.Namespace) -> Following:
    """Where the positions file says that each master stands. Leaves the program when it is none."""
    path: Path = options.positions
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return Following(Following.masters_of(options.master, document), options.start)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} is no file of positions ({error}): remove it, or name another") from error


async def main() -> int:
    """Follows until it is stopped; the next start goes on where the positions file ends."""
    options = parsed()
    following = kept(options)
    running = asyncio.ensure_future(Subscriber(options, following).run())
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        return await running
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
