"""What the bare primitives do on the same machine: `python -m bench.yardsticks xadd|echo …`; nothing of the product.

`xadd` adds entries to a Redis stream through an asyncio.Protocol and hiredis, 100 per flush; `echo` sends back what it
gets.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import uvloop

from bench.machine import CpuTimes, Disturbance
from bench.signed_load import payload_of_one

STREAM: Final = "bench:yardstick"
FLUSH_ENTRIES: Final = 100
_FLUSHES_UNDER_WAY: Final = 2
_TRIM_ENTRIES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Entries a second, and how disturbed the time was."""

    per_second: float
    is_disturbed: bool


class _Adder(asyncio.Protocol):
    """Keeps two flushes of 100 XADD under way, so that neither side waits for the other."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        # As many fields as an entry of the log has: one.
        self._words: tuple[Any, ...] = (
            "XADD", STREAM, "MAXLEN", "~", _TRIM_ENTRIES, "*", "b", payload_of_one(),
        )  # fmt: skip
        self._transport: asyncio.Transport | None = None
        self.added = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        for _ in range(_FLUSHES_UNDER_WAY):
            self._flush()

    def _flush(self) -> None:
        assert self._transport is not None
        words, pack = self._words, hiredis.pack_command
        self._transport.write(b"".join([pack(words) for _ in range(FLUSH_ENTRIES)]))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        before = self.added // FLUSH_ENTRIES
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            self.added += 1
        for _ in range(self.added // FLUSH_ENTRIES - before):
            self._flush()


async def add_entries(unix_socket: str, seconds: float, pids: tuple[int, ...]) -> Rate:
    """Adds entries for a time, after a short warm-up."""
    loop = asyncio.get_running_loop()
    _, adder = await loop.create_unix_connection(_Adder, unix_socket)
    await asyncio.sleep(seconds / 4)
    added, start = adder.added, CpuTimes.now(pids, time.perf_counter())
    await asyncio.sleep(seconds)
    end = CpuTimes.now(pids, time.perf_counter())
    per_second = (adder.added - added) / (end.wall_seconds - start.wall_seconds)
    return Rate(per_second, Disturbance.between(start, end).is_too_much)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def echo() -> None:
    """Echoes on a loopback port, which it prints, until the process ends."""
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", 0, family=socket.AF_INET)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def redis_benchmark(unix_socket: Path, entries: int) -> float | None:
    """Entries a second of `redis-benchmark -P 16` with the same payload; None where it is not installed."""
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        return None
    words = [program, "-s", str(unix_socket), "-P", "16", "-n", str(entries), "--csv"]
    command = ["XADD", STREAM, "MAXLEN", "~", str(_TRIM_ENTRIES), "*", "b", "x" * len(payload_of_one())]
    done = subprocess.run([*words, *command], capture_output=True, text=True, timeout=120, check=False)
    rows = [line.split('","') for line in done.stdout.splitlines() if line.startswith('"XADD')]
    return float(rows[0][1].strip('"')) if rows and len(rows[0]) > 1 else None


def main() -> int:
    """Runs one yardstick."""
    match sys.argv[1:]:
        case ["xadd", unix_socket, seconds, *pids]:
            rate = uvloop.run(add_entries(unix_socket, float(seconds), (os.getpid(), *map(int, pids))))
            print(json.dumps(asdict(rate)), flush=True)
        case ["echo"]:
            uvloop.run(echo())
        case _:
            print("usage: python -m bench.yardsticks xadd SOCKET SECONDS [PID…] | echo", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
