"""Well-formed frames of every kind, signed for one session, as the starting points of mutations; it mutates nothing."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from bench.authority import identity
from ecp_client.master.frames import SessionKeys, login_mac, mac, session_keys
from ecp_client.master.handshake import Identity
from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb
from mesh.clone import ROOT

_SPECIFICATION: Final = ROOT / "docs" / "protocol.md"
_VECTOR: Final = re.compile(r"^```vector [a-z0-9-]+\n(?P<hex>[0-9a-f\s]+)^```$", re.MULTILINE)
FUTURE_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Seeds:
    """What one session's client might say."""

    who: Identity
    client_nonce: bytes
    server_nonce: bytes
    keys: SessionKeys
    hello: bytes
    login: bytes
    payloads: tuple[bytes, ...]
    """Serialized ClientFrames for an open session that expects sequence 1."""
    bodies: tuple[tuple[str, bytes], ...]
    """Kind and body of what is signed, to be changed before signing."""

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every frame."""
        return (self.hello, self.login, *self.payloads)

    def sign(self, kind: str, body: bytes) -> bytes:
        """A serialized ClientFrame with a body that is signed as its kind asks."""
        match kind:
            case "signals":
                signed = pb.SignedSignals(body=body, mac=mac(self.keys.signals, body))
                return pb.ClientFrame(signals=signed).SerializeToString()
            case "gap_fill":
                filled = pb.SignedGapFill(body=body, mac=mac(self.keys.gap_fill, body))
                return pb.ClientFrame(gap_fill=filled).SerializeToString()
            case _:
                snapshot = pb.SignedSnapshot(body=body, mac=mac(self.keys.snapshot, body))
                return pb.ClientFrame(snapshot=snapshot).SerializeToString()

    def is_signed(self, frame: pb.ClientFrame) -> bool:
        """Whether the frame's body has the MAC that its kind asks for."""
        match frame.WhichOneof("frame"):
            case "signals":
                return mac(self.keys.signals, frame.signals.body) == frame.signals.mac
            case "gap_fill":
                return mac(self.keys.gap_fill, frame.gap_fill.body) == frame.gap_fill.mac
            case "snapshot":
                return mac(self.keys.snapshot, frame.snapshot.body) == frame.snapshot.mac
            case "login":
                signed = login_mac(self.who.secret, self.client_nonce, self.server_nonce, frame.login.body)
                return signed == frame.login.mac
            case _:
                return False


def seeds(
    master_id: int, client_nonce: bytes, server_nonce: bytes, first: int = 1, *, now_us: int | None = None
) -> Seeds:
    """Everything a client with these nonces may send when `first` is the next sequence, by the wall clock."""
    who = identity(master_id)
    keys = session_keys(who.secret, client_nonce, server_nonce)
    login_body = pb.LoginBody(version=1, master_id=master_id, license_token=who.license_token)
    body = login_body.SerializeToString()
    proof = login_mac(who.secret, client_nonce, server_nonce, body)
    hello = pb.Hello(
        version=1, version_min=1, master_id=master_id, key_id=who.key_id, nonce=client_nonce, client="fuzz"
    )
    bodies = _bodies(master_id, first, time.time_ns() // 1_000 if now_us is None else now_us)
    bare = Seeds(
        who=who,
        client_nonce=client_nonce,
        server_nonce=server_nonce,
        keys=keys,
        hello=pb.ClientFrame(hello=hello).SerializeToString(),
        login=pb.ClientFrame(login=pb.Login(body=body, mac=proof)).SerializeToString(),
        payloads=(),
        bodies=bodies,
    )
    signed = tuple(bare.sign(kind, one) for kind, one in bodies)
    plain = tuple(frame.SerializeToString() for frame in _unsigned_frames())
    return Seeds(
        who, client_nonce, server_nonce, keys, bare.hello, bare.login, (*signed, *plain, *golden()), bodies
    )  # fmt: skip


@lru_cache(1)
def golden() -> tuple[bytes, ...]:
    """The frames of both sides that the specification prints, without their lengths; signed for another session."""
    text = _SPECIFICATION.read_text(encoding="utf-8")
    vectors = [bytes.fromhex(found["hex"]) for found in _VECTOR.finditer(text)]
    return tuple(one[4:] for one in vectors if int.from_bytes(one[:4], "big") == len(one) - 4)


def _unsigned_frames() -> list[pb.ClientFrame]:
    return [
        pb.ClientFrame(ping=pb.Ping(id=7)),
        pb.ClientFrame(pong=pb.Pong(id=2**63, time_us=1)),
        pb.ClientFrame(bye=pb.Bye(reason="done")),
        pb.ClientFrame(),
    ]


def _bodies(master_id: int, first: int, now_us: int) -> tuple[tuple[str, bytes], ...]:
    every_kind = [_signal(kind, now_us) for kind in range(1, 10)]
    batches = [
        pb.SignalBatch(first_sequence=first, sent_at_us=now_us, signals=signals)
        for signals in ([every_kind[0]], every_kind, every_kind[:2] * 40)
    ]
    batches.append(
        pb.SignalBatch(
            first_sequence=first + 1, sent_at_us=now_us, signals=every_kind[:1], traceparent="00-ab-cd-01"
        )
    )
    gaps = [
        pb.GapFillBody(
            from_sequence=first, to_sequence=first + many, reason=position_pb2.GAP_REASON_REJECTED, note="n"
        )
        for many in (0, 5, 1_000_000)
    ]
    return (
        *(("signals", one.SerializeToString()) for one in batches),
        *(("gap_fill", one.SerializeToString()) for one in gaps),
        ("snapshot", _snapshot(master_id, now_us).SerializeToString()),
    )


def _signal(kind: int, now_us: int) -> signal_pb2.Signal:
    signal = signal_pb2.Signal(
        position_id=11,
        symbol="EURUSD",
        side=signal_pb2.SIDE_SELL,
        volume_lots_e8=10_000_000,
        price_e8=107_140_000,
        stop_loss_e8=108_000_000,
        occurred_at_us=now_us,
        order_id=12,
        order_type=signal_pb2.ORDER_TYPE_STOP_LIMIT,
        stop_limit_price_e8=107_000_000,
        expires_at_us=now_us + FUTURE_US,
        opposite_position_id=13,
        comment="näher",
        magic=99,
    )
    signal.kind = signal_pb2.SignalKind.ValueType(kind)
    return signal


def _snapshot(master_id: int, now_us: int) -> snapshot_pb2.Snapshot:
    snapshot = snapshot_pb2.Snapshot(
        master_id=master_id,
        taken_at_us=now_us,
        account_mode=signal_pb2.ACCOUNT_MODE_HEDGING,
        equity_e8=1_000_000_000_000,
        currency="USD",
    )
    for number in range(1, 4):
        snapshot.positions.add(
            position_id=number,
            symbol="EURUSD",
            side=signal_pb2.SIDE_BUY,
            volume_lots_e8=1_000_000,
            open_price_e8=107_000_000,
            opened_at_us=now_us,
        )
        snapshot.orders.add(
            order_id=number,
            symbol="EURUSD",
            side=signal_pb2.SIDE_BUY,
            order_type=signal_pb2.ORDER_TYPE_LIMIT,
            volume_lots_e8=1_000_000,
            price_e8=106_000_000,
        )
    return snapshot
