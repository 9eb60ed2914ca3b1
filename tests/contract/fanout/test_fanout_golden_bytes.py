"""The bytes of each event as they are sent: other languages' clients were built against them."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.fanout.domain import codec
from services.fanout.domain.position import Position

SEQUENCED = signal_pb2.SequencedSignal(
    master_id=7,
    epoch=1,
    sequence=300,
    previous_epoch=1,
    previous_sequence=299,
    signal=signal_pb2.Signal(
        kind=signal_pb2.SIGNAL_KIND_OPEN, position_id=5, symbol="EURUSD", side=signal_pb2.SIDE_BUY
    ),
    sent_at_us=1,
    received_at_us=2,
)
CHUNK = (
    "0a1e"
    + "0807"
    + "1001"
    + "18ac02"
    + "2001"
    + "28ab02"
    + "320e"
    + "0801"
    + "1005"
    + "1a06455552555344"
    + "2001"
)
TIMES = "3801" + "4002"


def hexed(message: codec.Message) -> str:
    return message.data.hex()


def test_one_signal() -> None:
    chunk = codec.signal_chunk(SEQUENCED)
    body = SEQUENCED.SerializeToString().hex()
    assert body == CHUNK[4:] + TIMES
    message = codec.signals_message(chunk, 1, 2)
    assert hexed(message) == f"0a{len(chunk):02x}" + "0a" + f"{len(body) // 2:02x}" + body


@pytest.mark.parametrize("count", [1, 3, 200])
def test_joined_chunks_are_what_the_contract_would_serialize(count: int) -> None:
    chunk = codec.signal_chunk(SEQUENCED)
    message = codec.signals_message(chunk * count, count, 2)
    whole = pb.SubscribeResponse(signals=pb.Signals(signals=[SEQUENCED] * count))
    assert message.data == whole.SerializeToString()
    assert message.signals == count


def test_a_gap() -> None:
    message = codec.gap_message(
        7,
        Position(1, 3),
        Position(1, 5),
        resume_after=Position(2, 5),
        reason=position_pb2.GAP_REASON_LOG_LOST,
        note="x",
    )
    assert (
        hexed(message)
        == "1219" + "0807" + "120408011003" + "1a0408011005" + "2003" + "2a0178" + "320408021005"
    )
    assert message.gap_reason == position_pb2.GAP_REASON_LOG_LOST


def test_a_snapshot() -> None:
    snapshot = snapshot_pb2.Snapshot(
        master_id=7, as_of=position_pb2.StreamPosition(epoch=1, sequence=4), taken_at_us=9
    )
    assert hexed(codec.snapshot_message(snapshot)) == "1a0c" + "0a0a" + "0807" + "120408011004" + "1809"


def test_progress() -> None:
    message = codec.progress_message([(7, Position(1, 4)), (8, Position(0, 0))], 10)
    assert hexed(message) == "2212" + "0a08" + "0807" + "120408011004" + "0a04" + "0808" + "1200" + "100a"


def test_a_state_change() -> None:
    message = codec.state_change_message(7, pb.SUBSCRIPTION_STATE_PAUSED_ALL, "x", 1_500_000)
    assert hexed(message) == "2a11" + "0807" + "1005" + "1a0178" + "2208" + "08011080cab5ee01"


def test_a_drain() -> None:
    message = codec.drain_message(1_500_000, [(7, Position(1, 4))])
    drain = pb.SubscribeResponse.FromString(message.data).drain
    assert drain.reconnect_after.ToMicroseconds() == 1_500_000
    assert message.data[0] == 0x32
