"""The service as operators start it: python -m services.ingest, its signals and its exit codes."""

from __future__ import annotations

import asyncio
import os
import signal as os_signals
import sys
from asyncio.subprocess import PIPE, Process

from mesh import ports
from tests.integration.ingest.raw_master import connected
from tests.integration.ingest.stand_in_ledger import SERVICE_TOKEN, StandInLedger

LOOPBACK = "127.0.0.1"


async def started(**environment: str) -> Process:
    base = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    base |= {
        "SERVICE_TOKEN": SERVICE_TOKEN,
        "GRPC_BIND_ADDRESS": f"{LOOPBACK}:0",
        "ADMIN_BIND_ADDRESS": f"{LOOPBACK}:0",
        "DRAIN_SPREAD_SECONDS": "0",
    }
    command = (sys.executable, "-m", "services.ingest")
    return await asyncio.create_subprocess_exec(*command, env=base | environment, stdout=PIPE, stderr=PIPE)


async def test_sigterm_drains_and_ends_with_0(redis_url: str, ledger: StandInLedger):
    with ports.port_block() as block:
        port = block.take()
        process = await started(
            REDIS_URL=redis_url,
            BIND_ADDRESS=f"{LOOPBACK}:{port}",
            LEDGER_ADDRESS=f"{LOOPBACK}:{ledger.port}",
        )
        try:
            while b'"ready"' not in (line := await process.stdout.readline()):
                assert line, await process.stderr.read()
            async with connected(port) as master:
                await master.log_in()
                master.send_signals(1)
                await master.acknowledged_up_to(1)
                process.send_signal(os_signals.SIGTERM)
                frames = await master.ended()
                assert [frame.WhichOneof("frame") for frame in frames] == ["drain", "bye"]
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            _, errors = await process.communicate()
        assert errors == b""


async def test_a_wrong_setting_ends_with_3_and_one_line(redis_url: str):
    process = await started(REDIS_URL=redis_url, BIND_ADDRESS="0.0.0.0:0")
    output, errors = await process.communicate()
    assert process.returncode == 3
    assert errors.decode().startswith("TLS_CERTIFICATE_FILE: ")
    assert errors.count(b"\n") == 1
    assert output == b""
