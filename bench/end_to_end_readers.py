"""The subscribers' process: `python -m bench.end_to_end_readers JSON` waits for every signal on every connection.

Our readers speak raw HTTP/2, JetStream's raw NATS. Everything else is the same for both: one epoll, one parse of bytes
that come many times, the clock read as each message is handed over. It prints when all streams are open, then what
came.
"""

from __future__ import annotations

import gc
import json
import select
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.end_to_end_pace import now_us
from bench.jetstream_client import NatsConnection
from bench.licenses import MASTER_ID
from bench.reader import Reader
from bench.samples import Samples
from execution.fanout.v1 import fanout_service_pb2 as fanout_pb
from execution.ingest.v1 import frames_pb2 as ingest_pb
from mesh.errors import MeshError

RANKS: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
_POLL_SECONDS: Final = 0.05
_OPEN_SECONDS_MAX: Final = 60.0
_SILENT_SECONDS_MAX: Final = 5.0
_LATE_SECONDS_MAX: Final = 15.0
"""How long after the last signal what has not come yet is waited for."""
_KNOWN_MESSAGES_MAX: Final = 20_000
_LINGER_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Reading:
    """What to open and to wait for: streams of a fan-out or, when subjects are named, JetStream's."""

    port: int
    subscribers: int
    interval_us: int
    warmup_signals: int
    measured_signals: int
    subjects: tuple[str, ...] = ()
    """JetStream's, one for each subscriber."""
    acknowledges: bool = False
    """Whether each of JetStream's messages is acknowledged."""


@dataclass(slots=True)
class Received:
    """What the subscribers got, of the signals behind the warm-up."""

    expected: int = 0
    delivered: int = 0
    messages: int = 0
    seconds: float = 0.0
    """From when the first of them was meant to be sent to the last receipt."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Of all; what did not come counts for as long as was waited for it."""


class Subscriber:
    """One connection's order: each signal once, none left out."""

    __slots__ = ("_swarm", "next_us", "received")

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self.next_us = 0
        """The intended time of the signal that comes next."""
        self.received = 0

    def take(self, message: bytes) -> None:
        """Takes a message.

        Raises:
            MeshError: a signal is missing before it, or comes twice.
        """
        swarm = self._swarm
        at_us = now_us()
        times = swarm.times_of(message)
        if self.next_us == 0:
            self.next_us = swarm.began_us = swarm.began_us or times[0]
        for intended_us in times:
            if intended_us != self.next_us:
                raise MeshError(f"a subscriber got the signal of {intended_us} us instead of {self.next_us}")
            self.next_us += swarm.interval_us
        self.received += len(times)
        swarm.count(times, at_us)


class Swarm:
    """All subscribers."""

    def __init__(self, reading: Reading) -> None:
        self.interval_us = reading.interval_us
        self.began_us = 0
        """When the first signal was meant to be sent; known when it has come."""
        self.subscribers: list[Subscriber] = []
        self.received = 0
        self.latencies = Samples()
        self.messages = 0
        self.last_at_us = 0
        self._reading = reading
        self._warmup_us = reading.warmup_signals * reading.interval_us
        self._poller = select.epoll()
        self._by_fd: dict[int, tuple[Reader | NatsConnection, Callable[[bytes], None]]] = {}
        self._known: dict[bytes, tuple[int, ...]] = {}

    def open(self) -> None:
        """Opens every stream and returns when each has begun.

        Raises:
            MeshError: they did not begin in time.
        """
        for number in range(self._reading.subscribers):
            connection = self._connection(number)
            fd = connection.socket.fileno()
            self._by_fd[fd] = connection, self.subscriber().take
            self._poller.register(fd, select.EPOLLIN)
        ends_at = time.monotonic() + _OPEN_SECONDS_MAX
        while not all(connection.has_begun for connection, _ in self._by_fd.values()):
            self.poll()
            if time.monotonic() > ends_at:
                raise MeshError("the streams did not begin in time")

    def subscriber(self) -> Subscriber:
        """One more subscriber."""
        self.subscribers.append(Subscriber(self))
        return self.subscribers[-1]

    def _connection(self, number: int) -> Reader | NatsConnection:
        reading = self._reading
        if reading.subjects:
            return NatsConnection(reading.port, reading.subjects[number], acknowledges=reading.acknowledges)
        return Reader(reading.port, f"license-{number}", MASTER_ID, None)

    def poll(self) -> None:
        """Reads what is there, or waits a little for it."""
        by_fd = self._by_fd
        for fd, _ in self._poller.poll(_POLL_SECONDS):
            connection, take = by_fd[fd]
            connection.receive(take)

    def times_of(self, message: bytes) -> tuple[int, ...]:
        """The intended times of a message's signals; the same bytes come on every connection and are parsed once."""
        times = self._known.get(message)
        if times is None:
            if len(self._known) >= _KNOWN_MESSAGES_MAX:
                self._known.clear()
            if self._reading.subjects:
                batch = ingest_pb.SignalBatch.FromString(message)
                times = tuple(one.position_id for one in batch.signals)
            else:
                response = fanout_pb.SubscribeResponse.FromString(message)
                times = tuple(one.signal.position_id for one in response.signals.signals)
            self._known[message] = times
        return times

    def count(self, times: tuple[int, ...], at_us: int) -> None:
        """A message came."""
        self.received += len(times)
        self.last_at_us = at_us
        measured_from_us = self.began_us + self._warmup_us
        if times[-1] < measured_from_us:
            return
        self.messages += 1
        for intended_us in times:
            if intended_us >= measured_from_us:
                self.latencies.add_microseconds(at_us - intended_us)

    def begin(self) -> None:
        """From now on signals are waited for."""
        self.last_at_us = now_us() + int(_OPEN_SECONDS_MAX * 1e6)

    @property
    def is_over(self) -> bool:
        """Whether every signal has come on every connection, or nothing comes any more."""
        reading, at_us = self._reading, now_us()
        signals = reading.warmup_signals + reading.measured_signals
        if self.received >= signals * reading.subscribers:
            return True
        if at_us > self.last_at_us + int(_SILENT_SECONDS_MAX * 1e6):
            return True
        ends_us = self.began_us + signals * reading.interval_us + int(_LATE_SECONDS_MAX * 1e6)
        return self.began_us > 0 and at_us > ends_us

    def wait(self) -> Received:
        """Waits for every signal on every connection, or until nothing comes any more."""
        self.begin()
        while not self.is_over:
            self.poll()
        return self.result()

    def result(self) -> Received:
        """What came until now; what is missing counts for as long as was waited for it."""
        reading = self._reading
        delivered = len(self.latencies)
        measured_from_us = self.began_us + self._warmup_us
        seconds = max(0, self.last_at_us - measured_from_us) / 1e6 if self.began_us else 0.0
        self._count_missing(reading.warmup_signals + reading.measured_signals)
        return Received(
            expected=reading.measured_signals * reading.subscribers,
            delivered=delivered,
            messages=self.messages,
            seconds=seconds,
            latency_ms=self.latencies.percentiles_ms(RANKS),
        )

    def _count_missing(self, signals: int) -> None:
        """What has not come yet is later than this."""
        at_us = now_us()
        for subscriber in self.subscribers:
            for number in range(max(subscriber.received, self._reading.warmup_signals), signals):
                self.latencies.add_microseconds(at_us - self.began_us - number * self.interval_us)


def as_json(reading: Reading) -> str:
    """The argument of the process."""
    return json.dumps(asdict(reading))


def check_ready(line: str) -> None:
    """Reads what the process printed first.

    Raises:
        MeshError: it printed why it failed.
    """
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise MeshError(str(values["error"]))


def received_of(line: str) -> Received:
    """What the process printed last.

    Raises:
        MeshError: it printed why it failed.
    """
    check_ready(line)
    return Received(**json.loads(line))


def reading_of(argument: str) -> Reading:
    """The argument of the process."""
    values = json.loads(argument)
    return Reading(**{**values, "subjects": tuple(values["subjects"])})


def say_ready() -> None:
    """Prints that all streams are open, and keeps what is there out of the way of what comes."""
    print(json.dumps({"ready": True}), flush=True)
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> int:
    """Reads what the argument describes."""
    try:
        swarm = Swarm(reading_of(sys.argv[1]))
        swarm.open()
        say_ready()
        received = swarm.wait()
        # Whoever looks at this process's CPU time still finds it.
        time.sleep(_LINGER_SECONDS)
    except Exception as error:
        # Whatever it was, the benchmark that waits for this process is to hear why it ends.
        print(json.dumps({"error": f"the readers failed: {type(error).__name__}: {error}"}), flush=True)
        return 1
    print(json.dumps(asdict(received)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
