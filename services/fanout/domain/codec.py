"""Turns what a stream is told into ready bytes; it decides nothing.

A message is a serialized `SubscribeResponse`. Signals are serialized once, each as one `Signals.signals` field
(a "chunk"): protobuf lets serialized repeated fields be concatenated, so a message of many signals is a header and
the chunks, whoever it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.fanout.domain.position import Position

_TAG_FIELD_1: Final = b"\x0a"
"""Field 1, length-delimited: both `SubscribeResponse.signals` and `Signals.signals`."""
_VARINT_1_BYTE: Final = 0x80


class Message:
    """One ready message of a stream.

    `signals` is how many it carries, `received_at_us` when the oldest of them came in, `gap_reason` why positions will
    not come if it is a Gap.
    """

    __slots__ = ("data", "gap_reason", "received_at_us", "signals")

    def __init__(self, data: bytes, signals: int = 0, received_at_us: int = 0, gap_reason: int = 0) -> None:
        self.data = data
        self.signals = signals
        self.received_at_us = received_at_us
        self.gap_reason = gap_reason


def varint(value: int) -> bytes:
    """A protobuf varint of a number that is not negative."""
    if value < _VARINT_1_BYTE:
        return bytes((value,))
    out = bytearray()
    while value >= _VARINT_1_BYTE:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signal_chunk(sequenced: signal_pb2.SequencedSignal) -> bytes:
    """One signal as it appears inside a `Signals`."""
    data = sequenced.SerializeToString()
    return b"".join((_TAG_FIELD_1, varint(len(data)), data))


def signals_message(chunks: bytes, count: int, received_at_us: int) -> Message:
    """The message that carries `count` signals whose chunks are joined in `chunks`."""
    return Message(b"".join((_TAG_FIELD_1, varint(len(chunks)), chunks)), count, received_at_us)


def position_pb(position: Position) -> position_pb2.StreamPosition:
    """The position as the contract has it."""
    return position_pb2.StreamPosition(epoch=position.epoch, sequence=position.sequence)


def master_positions_pb(positions: Iterable[tuple[int, Position]]) -> list[position_pb2.MasterPosition]:
    """Positions by master as the contract has them."""
    return [
        position_pb2.MasterPosition(master_id=master_id, position=position_pb(position))
        for master_id, position in positions
    ]


def gap_message(
    master_id: int,
    first: Position,
    last: Position,
    *,
    resume_after: Position,
    reason: position_pb2.GapReason.ValueType,
    note: str = "",
) -> Message:
    """The positions from `first` to `last` will not come; the reader then holds `resume_after`."""
    gap = pb.Gap(master_id=master_id, reason=reason, note=note)
    getattr(gap, "from").CopyFrom(position_pb(first))  # `from` is a keyword of Python
    gap.to.CopyFrom(position_pb(last))
    gap.resume_after.CopyFrom(position_pb(resume_after))
    return Message(pb.SubscribeResponse(gap=gap).SerializeToString(), gap_reason=reason)


def snapshot_message(snapshot: snapshot_pb2.Snapshot) -> Message:
    """Everything that a master has open."""
    return _message(pb.SubscribeResponse(snapshot=pb.Snapshot(snapshot=snapshot)))


def progress_message(positions: Iterable[tuple[int, Position]], server_time_us: int) -> Message:
    """Where the stream stands."""
    progress = pb.Progress(positions=master_positions_pb(positions), server_time_us=server_time_us)
    return _message(pb.SubscribeResponse(progress=progress))


def state_change_message(
    master_id: int, state: pb.SubscriptionState.ValueType, reason: str, changed_at_us: int
) -> Message:
    """A subscription's new state."""
    change = pb.StateChange(master_id=master_id, state=state, reason=reason)
    change.changed_at.FromMicroseconds(changed_at_us)
    return _message(pb.SubscribeResponse(state_change=change))


def drain_message(reconnect_after_us: int, positions: Iterable[tuple[int, Position]]) -> Message:
    """The server is about to end the stream."""
    drain = pb.Drain(positions=master_positions_pb(positions))
    drain.reconnect_after.FromMicroseconds(reconnect_after_us)
    return _message(pb.SubscribeResponse(drain=drain))


def _message(response: pb.SubscribeResponse) -> Message:
    return Message(response.SerializeToString())
