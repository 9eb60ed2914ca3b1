"""Many readers of one fan-out on one thread: opens them, reads what comes, counts it; it feeds nothing."""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable
from typing import Final

from bench.licenses import MASTER_ID
from bench.reader import Chunk, Reader
from bench.samples import Samples
from execution.fanout.v1 import fanout_service_pb2 as pb
from mesh.errors import MeshError

_OPENED_AT_ONCE: Final = 128
"""Streams that are asked for and have not begun. Many more only queue for the ledger's stand-in."""
_TOLD_EVERY: Final = 1_000
_OPEN_SECONDS_MAX: Final = 300.0
_BYTE_SECONDS: Final = 1.0
_SMALLEST_BUFFER_BYTES: Final = 4_096


class Swarm:
    """All readers of a run."""

    def __init__(self, port: int, ca_file: str, *, takes_latencies: bool) -> None:
        self.messages = 0
        self.signals = 0
        self.payload_bytes = 0
        self.latencies = Samples()
        self._takes_latencies = takes_latencies
        self._port = port
        self._poller = select.epoll()
        self._readers: dict[int, Reader] = {}
        self._now_us = 0
        self._tls = None
        if ca_file:
            self._tls = ssl.create_default_context(cafile=ca_file)
            self._tls.set_alpn_protocols(["h2"])

    def __len__(self) -> int:
        return len(self._readers)

    def open(self, count: int, tell: Callable[[str], None] = lambda _: None) -> None:
        """Opens so many more streams, a bounded number at a time, and waits for the first word of each.

        Raises:
            MeshError: not all of them began in time.
        """
        ends_at = time.monotonic() + _OPEN_SECONDS_MAX
        wanted, told = len(self) + count, (len(self) // _TOLD_EVERY + 1) * _TOLD_EVERY
        opening: list[Reader] = []
        while len(self) < wanted or opening:
            if len(self) < wanted and len(opening) < _OPENED_AT_ONCE:
                opening.append(self._open_one())
                continue
            self.poll(0.02)
            opening = [reader for reader in opening if not reader.has_begun]
            if len(self) - len(opening) >= told:
                tell(f"{told:,} streams are open")
                told += _TOLD_EVERY
            if time.monotonic() > ends_at:
                begun = len(self) - len(opening)
                raise MeshError(f"{begun:,} of {wanted:,} streams began in {_OPEN_SECONDS_MAX:.0f} s")

    def _open_one(self) -> Reader:
        reader = Reader(self._port, f"license-{len(self)}", MASTER_ID, self._tls)
        self._readers[reader.socket.fileno()] = reader
        self._poller.register(reader.socket.fileno(), select.EPOLLIN)
        return reader

    def poll(self, seconds: float) -> None:
        """Reads what is there."""
        readers, on_chunk = self._readers, self._on_chunk
        for fd, _ in self._poller.poll(seconds):
            self._now_us = time.time_ns() // 1_000
            readers[fd].receive_chunks(on_chunk)

    def settle(self, seconds: float) -> None:
        """Reads for a time."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.poll(0.02)

    def reset(self) -> None:
        """Counts from here."""
        self.messages = self.signals = self.payload_bytes = 0
        self.latencies = Samples()

    def _on_chunk(self, chunk: Chunk) -> None:
        times = chunk.times_us
        if times is None:
            responses = [pb.SubscribeResponse.FromString(message) for message in chunk.messages]
            times = tuple(one.signal.occurred_at_us for each in responses for one in each.signals.signals)
            chunk.times_us = times
        self.messages += len(chunk.messages)
        self.signals += len(times)
        self.payload_bytes += chunk.flow_bytes
        if self._takes_latencies:
            add, now_us = self.latencies.add_seconds, self._now_us
            for intended_us in times:
                add((now_us - intended_us) / 1e6)


class BadReaders:
    """A reader that never reads, and one that reads a byte a second; their kernels take as little as they can."""

    def __init__(self, port: int) -> None:
        self._never, self._slow = (
            Reader(port, f"license-{name}", MASTER_ID, None, receive_buffer_bytes=_SMALLEST_BUFFER_BYTES)
            for name in ("never", "slow")
        )
        self._read_at = time.monotonic()

    def __enter__(self) -> BadReaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._never.socket.close()
        self._slow.socket.close()

    def step(self) -> None:
        """Reads a byte if it is time."""
        now = time.monotonic()
        if now - self._read_at >= _BYTE_SECONDS:
            self._read_at = now
            self._slow.socket.recv(1)
