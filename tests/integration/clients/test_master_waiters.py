"""Who waits for acknowledgements of a master, on a real outbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ecp_client.master import Outbox
from ecp_client.master.waiting import CANCELLED_KEPT_MAX, Waiters


async def test_those_who_gave_up_waiting_do_not_pile_up(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        outbox.put_many([b"signal"] * 3)
        waiters = Waiters(outbox)
        patient = asyncio.create_task(waiters.wait(2))
        for _ in range(2 * CANCELLED_KEPT_MAX + 10):
            gives_up = asyncio.create_task(waiters.wait(3))
            await asyncio.sleep(0)
            gives_up.cancel()
            await asyncio.gather(gives_up, return_exceptions=True)
        assert len(waiters._heap) <= CANCELLED_KEPT_MAX + 1
        outbox.acknowledge(1, 2)
        waiters.acknowledged(2)
        await patient
