"""The readers of the end-to-end benchmark notice what is missing, doubled or late; JetStream's bytes are cut right."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bench import jetstream_client
from bench.end_to_end_pace import Pace, signal_bytes
from bench.end_to_end_readers import Reading, Swarm
from bench.jetstream_client import NatsConnection, NatsError
from ecp_client.master.frames import batch_body
from mesh.errors import MeshError

INTERVAL_US = 1_000
BEGAN_US = 5_000_000


def swarm_of(subscribers: int, *, signals: int = 10, warmup: int = 2) -> Swarm:
    reading = Reading(
        0, subscribers, INTERVAL_US, warmup, signals - warmup, tuple(f"to.{n}" for n in range(subscribers))
    )
    swarm = Swarm(reading)
    for _ in range(subscribers):
        swarm.subscriber()
    return swarm


def message(number: int) -> bytes:
    intended_us = BEGAN_US + number * INTERVAL_US
    return batch_body(number + 1, intended_us, [signal_bytes(intended_us, intended_us)])


def test_a_pace_tells_what_is_due() -> None:
    pace = Pace.of(1_000, 0.002, 0.008)
    assert (pace.interval_us, pace.warmup_signals, pace.measured_signals) == (1_000, 2, 8)
    assert pace.due(BEGAN_US, BEGAN_US - 1) == 0
    assert pace.due(BEGAN_US, BEGAN_US) == 1
    assert pace.due(BEGAN_US, BEGAN_US + 999) == 1
    assert pace.due(BEGAN_US, BEGAN_US + 1_000) == 2
    assert pace.due(BEGAN_US, BEGAN_US + 60_000_000) == 10


def test_only_signals_behind_the_warmup_are_measured() -> None:
    swarm = swarm_of(2)
    for subscriber in swarm.subscribers:
        for number in range(10):
            subscriber.take(message(number))
    assert swarm.received == 20
    assert len(swarm.latencies) == 16
    assert swarm.messages == 16


def test_a_missing_signal_is_told() -> None:
    (subscriber,) = swarm_of(1).subscribers
    subscriber.take(message(0))
    with pytest.raises(MeshError, match="instead of"):
        subscriber.take(message(2))


def test_a_doubled_signal_is_told() -> None:
    (subscriber,) = swarm_of(1).subscribers
    subscriber.take(message(0))
    with pytest.raises(MeshError, match="instead of"):
        subscriber.take(message(0))


def test_a_subscriber_that_began_later_than_the_first_is_told() -> None:
    early, late = swarm_of(2).subscribers
    early.take(message(0))
    with pytest.raises(MeshError, match="instead of"):
        late.take(message(1))


def test_what_never_came_counts_as_late_as_it_is() -> None:
    swarm = swarm_of(2)
    for subscriber, count in zip(swarm.subscribers, (10, 7), strict=True):
        for number in range(count):
            subscriber.take(message(number))
    result = swarm.result()
    assert (result.expected, result.delivered) == (16, 13)
    assert len(swarm.latencies) == 16


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The other end of a NatsConnection."""
    near, far = socket.socketpair()
    far.sendall(b'INFO {"server_id":"x"}\r\nPONG\r\n')

    class Near:
        """A socket that has no TCP options."""

        def __getattr__(self, name: str) -> object:
            return getattr(near, name)

        def setsockopt(self, *words: object) -> None:
            """Not of a socket pair."""

    monkeypatch.setattr(jetstream_client.socket, "create_connection", lambda *_, **__: Near())
    with near, far:
        yield far


def test_nats_messages_are_cut_wherever_their_bytes_break(server: socket.socket) -> None:
    connection = NatsConnection(0, "to.0")
    sent = b"MSG to.0 1 $JS.ACK.x 5\r\nfirst\r\nPING\r\nMSG to.0 1 0\r\n\r\nMSG to.0 1 8\r\nMSG \r\n 1\r\n"
    for cut in range(1, len(sent)):
        got: list[bytes] = []
        for part in (sent[:cut], sent[cut:]):
            server.sendall(part)
            connection.receive(got.append)
        assert got == [b"first", b"", b"MSG \r\n 1"]
    assert server.recv(65_536).endswith(b"PONG\r\n")


def test_an_error_of_the_nats_server_is_told(server: socket.socket) -> None:
    connection = NatsConnection(0, "to.0")
    server.sendall(b"-ERR 'Slow Consumer'\r\n")
    with pytest.raises(NatsError, match="Slow Consumer"):
        connection.receive(lambda payload: None)
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(NatsError, match="closed"):
        connection.receive(lambda payload: None)
