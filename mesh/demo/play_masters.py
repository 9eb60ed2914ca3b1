"""The demo's process of masters: trades when told, reports, and leaves each master's own record in its folder."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mesh.demo import wire
from mesh.demo.trader import Trader
from mesh.demo.wire import Wire
from mesh.process import run_until_signalled

REPORT_SECONDS = 0.25
OPEN_SECONDS_MAX = 30.0
SETTLE_SECONDS_MAX = 120.0


async def play(spec: dict[str, Any]) -> None:
    """Plays all masters of the spec until the demo closes the wire."""
    folder = Path(spec["folder"])
    async with AsyncExitStack() as stack:
        line = await wire.connect(Path(spec["wire"]))
        stack.callback(line.close)
        traders = [
            await stack.enter_async_context(Trader(one, spec["front_door"], folder))
            for one in spec["masters"]
        ]
        for trader in traders:
            await trader.master.wait_open(OPEN_SECONDS_MAX)
        reporter = asyncio.create_task(_report(line, traders))
        stack.callback(reporter.cancel)
        await line.send({"kind": "ready"})
        async for message in line.messages():
            if message["kind"] == "go":
                await _trade(line, traders, spec, folder)


async def _trade(line: Wire, traders: list[Trader], spec: dict[str, Any], folder: Path) -> None:
    async with asyncio.TaskGroup() as market:
        for trader in traders:
            market.create_task(trader.trade(spec["seconds"], spec["rate"] / len(traders)))
    heads = {}
    for trader in traders:
        heads[trader.master_id] = await trader.finish(SETTLE_SECONDS_MAX)
        (folder / f"{trader.master_id}.json").write_text(json.dumps(trader.book()), encoding="utf-8")
    await line.send({"kind": "ended", "heads": heads})


async def _report(line: Wire, traders: list[Trader]) -> None:
    loop = asyncio.get_running_loop()
    last, last_count = loop.time(), 0
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        now, rows = loop.time(), [trader.row() for trader in traders]
        count = sum(row["acknowledged"] for row in rows)
        await line.send(
            {"kind": "masters", "rows": rows, "signals_per_second": (count - last_count) / (now - last)}
        )
        last, last_count = now, count


if __name__ == "__main__":
    run_until_signalled(play(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
