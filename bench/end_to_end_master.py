"""The master's process: `python -m bench.end_to_end_master JSON` sends one signal at each set time, come what may.

To a front door they go in signed frames of one, to JetStream as published messages of the same bytes; everything is
made before the first is due. It prints when it begins, then what it saw.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.end_to_end_pace import TRACEPARENT, Pace, now_us, signal_bytes
from bench.jetstream_client import JetStreamPublisher
from bench.samples import Samples
from bench.signed_load import LoadConnection, SignedFrames
from ecp_client.master.frames import SIGNALS_TAG, batch_body, signed_frame
from mesh.errors import MeshError

_PREPARE_SECONDS_MIN: Final = 0.5
_PREPARE_SECONDS_PER_SIGNAL: Final = 0.000_1
_LAST_ACK_SECONDS_MAX: Final = 20.0
_LINGER_SECONDS: Final = 0.3
_PR_SET_TIMERSLACK: Final = 29
_NAP_SECONDS: Final = 0.000_5

Sender = LoadConnection | JetStreamPublisher


@dataclass(frozen=True, slots=True)
class Sending:
    """What to send where: to a front door, or to JetStream when a subject is named."""

    port: int
    interval_us: int
    warmup_signals: int
    measured_signals: int
    master_id: int = 1
    subject: str = ""
    inbox: str = ""

    @property
    def pace(self) -> Pace:
        """When each signal is due."""
        return Pace(self.interval_us, self.warmup_signals, self.measured_signals)


@dataclass(slots=True)
class Sent:
    """What the master saw."""

    signals: int = 0
    acknowledged: int = 0
    payload_bytes: int = 0
    """Of one signal, as the log or the stream stores it."""
    late_ms: dict[str, float] = field(default_factory=dict)
    """How far behind the set times it sent."""


def _bodies(pace: Pace, began_us: int, first_sequence: int) -> Iterator[bytes]:
    """What each signal is in a frame of its own; stamped as if it was made in the moment in which it is due."""
    ahead_us = time.time_ns() // 1_000 - now_us()
    for number in range(pace.signals):
        intended_us = pace.intended_us(began_us, number)
        wall_us = intended_us + ahead_us
        signal = signal_bytes(intended_us, wall_us)
        yield batch_body(first_sequence + number, wall_us, [signal], TRACEPARENT)


def _prepare(sending: Sending) -> tuple[Sender, int, int]:
    """A connection with all its frames, when to begin, and the size of a body in bytes."""
    pace = sending.pace
    prepare_seconds = _PREPARE_SECONDS_MIN + _PREPARE_SECONDS_PER_SIGNAL * pace.signals
    if sending.subject:
        publisher = JetStreamPublisher(sending.port, sending.subject, sending.inbox)
        began_us = now_us() + int(prepare_seconds * 1e6)
        bodies = list(_bodies(pace, began_us, 1))
        publisher.load(bodies)
        return publisher, began_us, len(bodies[-1])
    connection = LoadConnection(sending.port, sending.master_id)
    connection.log_in()
    began_us = now_us() + int(prepare_seconds * 1e6)
    data, ends, body = bytearray(), array("Q"), b""
    for body in _bodies(pace, began_us, connection.base + 1):
        data += signed_frame(SIGNALS_TAG, connection.session_key, body)
        ends.append(len(data))
    connection.frames = SignedFrames(memoryview(data), ends, 1)
    return connection, began_us, len(body)


def _send(pace: Pace, sender: Sender, began_us: int) -> Sent:
    """Sends each signal at its time and waits for the last acknowledgement.

    Raises:
        MeshError: something was refused.
    """
    late = Samples()
    sent = 0
    while sent < pace.signals or not sender.send():
        at_us = now_us()
        due = pace.due(began_us, at_us)
        if due > sent:
            sender.allow(due)
            sender.send()
            for number in range(max(sent, pace.warmup_signals), due):
                late.add_microseconds(at_us - pace.intended_us(began_us, number))
            sent = due
        sender.receive()
        rest_us = pace.intended_us(began_us, sent) - now_us()
        if rest_us > 0:
            time.sleep(rest_us / 1e6)
    ends_at_us = now_us() + int(_LAST_ACK_SECONDS_MAX * 1e6)
    while sender.acknowledged < sent and now_us() < ends_at_us:
        sender.receive()
        time.sleep(_NAP_SECONDS)
    return Sent(sent, sender.acknowledged, late_ms=late.percentiles_ms())


def run(sending: Sending) -> Sent:
    """Connects, prepares, says when it begins, and sends.

    Raises:
        MeshError: the other side did not do what was expected.
    """
    sender, began_us, body_bytes = _prepare(sending)
    if now_us() >= began_us:
        raise MeshError("the signals were not ready in time: the machine is too busy")
    print(json.dumps({"began_us": began_us}), flush=True)
    gc.collect()
    gc.freeze()
    gc.disable()
    # Linux lets sleepers oversleep by 50 us to save wake-ups; without it a master is as punctual as its processor.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    sent = _send(sending.pace, sender, began_us)
    sent.payload_bytes = body_bytes
    # Whoever looks at this process's CPU time still finds it.
    time.sleep(_LINGER_SECONDS)
    sender.close()
    return sent


def as_json(sending: Sending) -> str:
    """The argument of the process."""
    return json.dumps(asdict(sending))


def sent_of(line: str) -> Sent:
    """What the process printed last.

    Raises:
        MeshError: it printed why it failed.
    """
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise MeshError(str(values["error"]))
    return Sent(**values)


def began_us_of(line: str) -> int:
    """What the process printed first.

    Raises:
        MeshError: it printed why it failed.
    """
    values: dict[str, Any] = json.loads(line)
    if "error" in values:
        raise MeshError(str(values["error"]))
    return int(values["began_us"])


def main() -> int:
    """Sends what the argument describes."""
    try:
        sent = run(Sending(**json.loads(sys.argv[1])))
    except (MeshError, OSError) as error:
        print(json.dumps({"error": f"the master failed: {error}"}), flush=True)
        return 1
    print(json.dumps(asdict(sent)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
