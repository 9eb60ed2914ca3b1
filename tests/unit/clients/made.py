"""Signals and snapshots as the tests of books and copying need them."""

from __future__ import annotations

from ecp_client.signals import to_e8
from execution.common.v1 import signal_pb2 as pb


def price(value: str) -> int:
    return to_e8(value)


lots = price


def signal(kind: pb.SignalKind.ValueType, position_id: int, **fields: object) -> pb.Signal:
    """A signal of 0.10 lots EURUSD, bought at 1.1, unless `fields` say otherwise."""
    values: dict[str, object] = {
        "kind": kind,
        "position_id": position_id,
        "symbol": "EURUSD",
        "side": pb.SIDE_BUY,
        "volume_lots_e8": lots("0.10"),
        "price_e8": price("1.1"),
        "occurred_at_us": 1_000_000,
        **fields,
    }
    return pb.Signal(**values)


def sequenced(one: pb.Signal, sequence: int = 1, epoch: int = 1, master_id: int = 1) -> pb.SequencedSignal:
    return pb.SequencedSignal(
        master_id=master_id,
        epoch=epoch,
        sequence=sequence,
        previous_epoch=epoch,
        previous_sequence=sequence - 1,
        signal=one,
        sent_at_us=one.occurred_at_us,
    )
