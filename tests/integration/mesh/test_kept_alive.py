"""Data servers of a mesh that die: started again, or else said why not, and tried until they start."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mesh import supervisor
from mesh.embedded import Servers, redis
from mesh.running import kept_alive
from mesh.supervisor import ServiceSpec, Supervised
from tests import waiting

WAIT_SECONDS_MAX = 30.0

until = partial(waiting.until, seconds_max=WAIT_SECONDS_MAX)


async def test_a_server_that_cannot_start_is_told_and_tried_until_it_does(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.running.RESTART_DELAY_SECONDS_MAX", supervisor.RESTART_DELAY_SECONDS)
    troubles: dict[str, str] = {}
    async with redis(data_folder, appendfsync="always") as server:
        async with Redis.from_url(server.url) as client:
            await client.set("kept", 1)
        async with kept_alive(Servers("", server.url, None, server), troubles):
            manifest = data_folder / "appendonlydir" / "appendonly.aof.manifest"
            intact = manifest.read_bytes()
            manifest.write_bytes(b"nonsense\n")
            server.kill()
            await until(lambda: "Redis" in troubles)
            assert "Redis did not start" in troubles["Redis"]

            manifest.write_bytes(intact)
            await until(lambda: not troubles)
            async with Redis.from_url(server.url) as client:
                assert await client.get("kept") == b"1"


async def test_a_service_that_cannot_be_started_is_told_and_tried_until_it_can(tmp_path: Path) -> None:
    """Somebody removed the folder of its log."""
    log = tmp_path / "logs" / "risk.log"
    log.parent.mkdir()
    # Without settings it ends at once, and is started again each time.
    service = Supervised(ServiceSpec("risk", {}, "127.0.0.1:1", log))
    service.start()
    keeper = asyncio.create_task(service.keep_alive())
    try:
        log.unlink()
        log.parent.rmdir()
        await until(lambda: "cannot start risk" in service.trouble)
        log.parent.mkdir()
        await until(lambda: not service.trouble and log.exists())
        assert not keeper.done()
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await service.stop()
