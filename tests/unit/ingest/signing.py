"""What a client signs and how, written from docs/protocol.md and not from the service's code; no sockets."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb


def now_us() -> int:
    return time.time_ns() // 1_000


def signal(number: int = 1, **fields: object) -> signal_pb2.Signal:
    values: dict[str, object] = {
        "kind": signal_pb2.SIGNAL_KIND_OPEN,
        "position_id": 1_000 + number,
        "symbol": "EURUSD",
        "side": signal_pb2.SIDE_BUY,
        "volume_lots_e8": 10_000_000,
        "price_e8": 107_140_000,
        "occurred_at_us": now_us(),
    }
    values.update(fields)
    return signal_pb2.Signal(**values)


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


@dataclass
class Credentials:
    master_id: int = 1
    secret: bytes = b"s" * 32
    key_id: str = "k1"
    license_token: str = "license-1"


@dataclass
class Keys:
    """What a session signs with."""

    secret: bytes
    client_nonce: bytes
    server_nonce: bytes
    session: bytes = b""
    snapshot: bytes = b""
    gap_fill: bytes = b""

    def __post_init__(self) -> None:
        nonces = self.client_nonce + self.server_nonce
        self.session = mac(self.secret, b"session", nonces)
        self.snapshot = mac(self.secret, b"snapshot", nonces)
        self.gap_fill = mac(self.secret, b"gapfill", nonces)

    def login(self, body: bytes) -> pb.ClientFrame:
        signed = mac(self.secret, b"login", self.client_nonce, self.server_nonce, body)
        return pb.ClientFrame(login=pb.Login(body=body, mac=signed))

    def signals(self, first: int, signals: Sequence[signal_pb2.Signal]) -> pb.ClientFrame:
        batch = pb.SignalBatch(first_sequence=first, sent_at_us=now_us(), signals=signals)
        return self.signed_batch(batch.SerializeToString())

    def signed_batch(self, body: bytes) -> pb.ClientFrame:
        return pb.ClientFrame(signals=pb.SignedSignals(body=body, mac=mac(self.session, body)))

    def gap(self, first: int, last: int, reason: int = position_pb2.GAP_REASON_REJECTED) -> pb.ClientFrame:
        body = pb.GapFillBody(from_sequence=first, to_sequence=last, reason=reason)
        return self.signed_gap(body.SerializeToString())

    def signed_gap(self, body: bytes) -> pb.ClientFrame:
        return pb.ClientFrame(gap_fill=pb.SignedGapFill(body=body, mac=mac(self.gap_fill, body)))

    def snapshot_frame(self, snapshot: snapshot_pb2.Snapshot) -> pb.ClientFrame:
        body = snapshot.SerializeToString()
        return pb.ClientFrame(snapshot=pb.SignedSnapshot(body=body, mac=mac(self.snapshot, body)))


def login_body(
    who: Credentials, acknowledged: tuple[int, int] = (0, 0), *, begin_epoch: bool = False
) -> pb.LoginBody:
    body = pb.LoginBody(
        version=1, master_id=who.master_id, license_token=who.license_token, begin_epoch=begin_epoch
    )
    body.acknowledged.epoch, body.acknowledged.sequence = acknowledged
    return body


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload
