"""Where the signals of a fan-out benchmark come from: the log, as the front door writes it, or a bare writer."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Final, Protocol

from redis import Redis

from bench.licenses import MASTER_ID
from execution.common.v1 import signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ingest.v1 import frames_pb2, log_pb2
from services.common import log as signal_log
from services.common import stream

PADDING_BYTES: Final = 60
"""Of a signal's comment: brings a message with its frame to about 170 bytes."""


class Feeder(Protocol):
    """Hands signals over to what is measured."""

    def feed(self, intended_us: Sequence[int]) -> None:
        """One signal for each intended time, in microseconds."""
        ...


def signal_at(sequence: int, intended_us: int, padding_bytes: int = PADDING_BYTES) -> signal_pb2.Signal:
    """A signal that carries when it was meant to be sent."""
    return signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_OPEN,
        position_id=sequence,
        symbol="EURUSD",
        side=signal_pb2.SIDE_BUY,
        volume_lots_e8=10_000_000,
        price_e8=107_140_000,
        stop_loss_e8=106_000_000,
        take_profit_e8=109_000_000,
        occurred_at_us=intended_us,
        comment="x" * padding_bytes,
    )


class LogFeeder:
    """Appends to the log, one entry for each signal."""

    entries_max: int = 50_000
    """What is trimmed off the log beyond this is for nobody to read."""

    def __init__(self, url: str, padding_bytes: int = PADDING_BYTES) -> None:
        self._padding_bytes = padding_bytes
        self._redis = Redis.from_url(url)
        self._redis.hsetnx(stream.meta_name(), signal_log.LOG_ID, "bench")
        head = self._redis.hget(stream.heads_name(), str(MASTER_ID))
        self._last = int(str(head, "ascii").split()[1]) if isinstance(head, bytes) else 0

    def feed(self, intended_us: Sequence[int]) -> None:
        """Appends them in one round trip."""
        if not intended_us:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for intended in intended_us:
            self._last += 1
            now_us = time.time_ns() // 1_000
            signal = signal_at(self._last, intended, self._padding_bytes)
            run = log_pb2.LogRun(
                master_id=MASTER_ID,
                epoch=1,
                first_sequence=self._last,
                last_sequence=self._last,
                received_at_us=now_us,
                session_epoch=1,
                key_id="bench",
                batch=frames_pb2.SignalBatch(first_sequence=self._last, sent_at_us=now_us, signals=[signal]),
            )
            entry = log_pb2.LogBatch(runs=[run]).SerializeToString()
            pipeline.xadd(stream.log_name(), {stream.FIELD: entry}, maxlen=self.entries_max, approximate=True)
        pipeline.hset(stream.heads_name(), str(MASTER_ID), f"1 {self._last} 1 - 0 0")
        pipeline.execute()


class BareFeeder:
    """Sends ready messages to `bench.bare_fanout`, which writes each to everybody."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._last = 0

    def feed(self, intended_us: Sequence[int]) -> None:
        """Sends them, each with its length before it."""
        for intended in intended_us:
            self._last += 1
            sequenced = signal_pb2.SequencedSignal(
                master_id=MASTER_ID,
                epoch=1,
                sequence=self._last,
                previous_epoch=1,
                previous_sequence=self._last - 1,
                signal=signal_at(self._last, intended),
                sent_at_us=intended,
                received_at_us=intended,
            )
            message = pb.SubscribeResponse(signals=pb.Signals(signals=[sequenced])).SerializeToString()
            self._socket.sendall(len(message).to_bytes(4, "big") + message)
