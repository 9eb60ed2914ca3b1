"""The demo's process of subscribers: follows until told to finish, reports, and leaves each one's own books."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from mesh.demo import wire
from mesh.demo.cast import Behaviour
from mesh.demo.follower import Follower
from mesh.demo.latency import Latencies
from mesh.demo.wire import Message, Wire
from mesh.errors import MeshError
from mesh.process import run_until_signalled

REPORT_SECONDS = 0.25
POLL_SECONDS = 0.05
CONNECT_SECONDS_MAX = 45.0
CATCH_UP_SECONDS_MAX = 120.0


class Company:
    """All followers of the process, by name."""

    def __init__(self, line: Wire, followers: list[Follower], latencies: Latencies, cut: Latencies) -> None:
        self._line = line
        self._followers = {follower.name: follower for follower in followers}
        self._latencies = latencies
        self._cut_latencies = cut

    async def connect(self) -> None:
        """Waits until everybody's streams have begun.

        Raises:
            MeshError: that took too long.
        """
        deadline = asyncio.get_running_loop().time() + CONNECT_SECONDS_MAX
        while waiting := sum(not follower.is_connected for follower in self._followers.values()):
            if asyncio.get_running_loop().time() > deadline:
                raise MeshError(f"{waiting} followers had no stream after {CONNECT_SECONDS_MAX:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        await self._line.send({"kind": "ready"})

    async def obey(self, message: Message) -> None:
        """Does what the demo says."""
        follower = self._followers.get(message.get("name", ""))
        match message["kind"], follower:
            case "cut", Follower(cable=line) if line is not None:
                line.cut()
            case "mend", Follower(cable=line) if line is not None:
                line.mend()
            case "token", Follower():
                follower.subscriber.set_license_token(message["token"])
            case "finish", _:
                await self._finish({int(key): (at[0], at[1]) for key, at in message["heads"].items()})

    async def report(self) -> None:
        """Reports until cancelled."""
        loop = asyncio.get_running_loop()
        last, last_count = loop.time(), 0
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            now, rows = loop.time(), [follower.row() for follower in self._followers.values()]
            count = sum(row["received"] for row in rows)
            p50, p99 = self._latencies.recent_percentiles_ms(50, 99)
            events = [text for follower in self._followers.values() for text in follower.take_events()]
            await self._line.send(
                {
                    "kind": "subscribers", "rows": rows, "events": events, "p50_ms": p50, "p99_ms": p99,
                    "deliveries_per_second": (count - last_count) / (now - last),
                }
            )  # fmt: skip
            last, last_count = now, count

    async def _finish(self, heads: dict[int, tuple[int, int]]) -> None:
        behind = [one for one in self._followers.values() if not one.has_reached(heads)]
        deadline = asyncio.get_running_loop().time() + CATCH_UP_SECONDS_MAX
        while behind and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_SECONDS)
            behind = [one for one in behind if not one.has_reached(heads)]
        for follower in self._followers.values():
            follower.write_holdings()
            await follower.subscriber.close()
        latency = {**_summary(self._latencies), "behind_the_cut": _summary(self._cut_latencies)}
        await self._line.send(
            {"kind": "closed", "unfinished": [one.name for one in behind], "latency_ms": latency}
        )


def _summary(latencies: Latencies) -> dict[str, float | None]:
    p50, p90, p99, most = latencies.percentiles_ms(50, 90, 99, 100)
    return {"p50": p50, "p90": p90, "p99": p99, "max": most, "samples": len(latencies)}


async def play(spec: dict[str, Any]) -> None:
    """Plays all subscribers of the spec until the demo closes the wire."""
    # What waited behind the cut cable says how long the cut was, not how quick the mesh is.
    latencies, cut = Latencies(), Latencies()
    async with AsyncExitStack() as stack:
        line = await wire.connect(Path(spec["wire"]))
        stack.callback(line.close)
        shared = {"fanout": spec["fanout"], "risk": spec["risk"]}
        followers = []
        for one in spec["subscribers"]:
            own = cut if one["behaviour"] == Behaviour.CUT_OFF else latencies
            follower = Follower({**one, **shared}, Path(spec["folder"]), own)
            followers.append(await stack.enter_async_context(follower))
        company = Company(line, followers, latencies, cut)
        await company.connect()
        reporter = asyncio.create_task(company.report())
        stack.callback(reporter.cancel)
        async for message in line.messages():
            await company.obey(message)


if __name__ == "__main__":
    uvloop.install()
    run_until_signalled(play(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
