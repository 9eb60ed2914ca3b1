"""The examples of clients/python work as they are."""

from __future__ import annotations

import asyncio
import base64
import sys
from pathlib import Path

from redis.asyncio import Redis

from services.ingest.app import Running
from tests.integration.fanout.fanout_service import Fanout
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog
from tests.integration.ingest.front_door import read_log, signals_in
from tests.unit.ingest.signing import Credentials

EXAMPLES = Path(__file__).resolve().parents[3] / "clients" / "python" / "examples"
WAIT_SECONDS = 60


async def run(name: str, *arguments: object) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(EXAMPLES / name),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def test_the_master_trades(ingest: Running, redis_client: Redis, tmp_path: Path) -> None:
    who = Credentials()
    said = await run(
        "master.py", "--front-door", f"127.0.0.1:{ingest.port}", "--plaintext", "--master-id", who.master_id,
        "--key-id", who.key_id, "--secret", base64.b64encode(who.secret).decode(), "--license", who.license_token,
        "--outbox", tmp_path / "outbox",
    )  # fmt: skip
    assert "everything up to sequence 4 of epoch 1 is in the log" in said
    assert signals_in(await read_log(redis_client)) == dict.fromkeys(range(1, 5), 1)


async def test_the_subscriber_explains_itself(
    fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog, tmp_path: Path
) -> None:
    subscribers_ledger.add_user("token", 1)
    await log.signals(1, 3)
    said = await run(
        "subscriber.py", "--fanout", fanout.target, "--plaintext", "--license", "token", "--master", 1,
        "--start", "beginning", "--count", 3, "--journal", tmp_path / "journal",
    )  # fmt: skip
    assert "1/1/3: Resized open of EURUSD #3 to 0.05 lots (the master: 0.1): volume × 0.5" in said
