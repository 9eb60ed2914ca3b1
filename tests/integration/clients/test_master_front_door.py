"""The master client against the real front door."""

from __future__ import annotations

from pathlib import Path

from redis.asyncio import Redis

from ecp_client.books import Book
from ecp_client.master import Master, MasterSettings
from services.ingest.app import Running
from tests.integration.ingest.front_door import read_log, signals_in
from tests.unit.ingest.signing import Credentials, signal

WAIT_SECONDS = 20


def settings(ingest: Running, folder: Path, **overrides: object) -> MasterSettings:
    who = Credentials()
    values: dict[str, object] = {
        "addresses": [f"127.0.0.1:{ingest.port}"],
        "master_id": who.master_id,
        "key_id": who.key_id,
        "secret": who.secret,
        "license_token": who.license_token,
        "outbox_folder": folder / "outbox",
        "plaintext": True,
        **overrides,
    }
    return MasterSettings(**values)  # type: ignore[arg-type]  # the caller names settings


async def test_signals_put_before_and_after_the_login_are_in_the_log_once(
    ingest: Running, redis_client: Redis, tmp_path: Path
) -> None:
    master = Master(settings(ingest, tmp_path), book=Book())
    early = [master.put(signal(number)) for number in range(1, 4)]
    async with master:
        late = await master.send_many([signal(number) for number in range(4, 1_004)])
        await master.wait_all_acknowledged(WAIT_SECONDS)
        assert early == [1, 2, 3]
        assert late == range(4, 1_004)
        assert master.acknowledged == (1, 1_003)
    found = signals_in(await read_log(redis_client))
    assert found == {number: 1_000 + number for number in range(1, 1_004)}
