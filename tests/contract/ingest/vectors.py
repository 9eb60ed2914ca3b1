"""The golden vectors of docs/protocol.md, made from the generated messages and the standard library's HMAC alone."""

from __future__ import annotations

import hmac
import re
from pathlib import Path

from execution.common.v1 import position_pb2, signal_pb2, snapshot_pb2
from execution.ingest.v1 import frames_pb2 as pb

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
_BLOCK = re.compile(r"^```vector (?P<name>[a-z0-9-]+)\n(?P<hex>[0-9a-f\s]+)^```$", re.MULTILINE)

SECRET = bytes(range(0x00, 0x20))
CLIENT_NONCE = bytes(range(0x20, 0x30))
SERVER_NONCE = bytes(range(0x40, 0x60))
MASTER_ID, KEY_ID, LICENSE_TOKEN = 42, "k-2026", "ecp_example"
TIME_US = 1_800_000_000_000_000


def documented() -> dict[str, bytes]:
    """The vectors as the document prints them."""
    blocks = _BLOCK.finditer(DOCUMENT.read_text(encoding="utf-8"))
    found: dict[str, bytes] = {}
    for block in blocks:
        assert block["name"] not in found, f"{block['name']} is there twice"
        found[block["name"]] = bytes.fromhex(block["hex"])
    return found


def mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def framed(frame: pb.ClientFrame | pb.ServerFrame) -> bytes:
    payload = frame.SerializeToString()
    return len(payload).to_bytes(4, "big") + payload


def signals() -> list[signal_pb2.Signal]:
    return [
        signal_pb2.Signal(
            kind=signal_pb2.SIGNAL_KIND_OPEN,
            position_id=1_001,
            symbol="EURUSD",
            side=signal_pb2.SIDE_BUY,
            volume_lots_e8=10_000_000,
            price_e8=107_140_000,
            stop_loss_e8=106_900_000,
            take_profit_e8=107_500_000,
            occurred_at_us=TIME_US,
        ),
        signal_pb2.Signal(
            kind=signal_pb2.SIGNAL_KIND_CLOSE,
            position_id=1_000,
            symbol="EURUSD",
            price_e8=107_150_000,
            occurred_at_us=TIME_US + 500,
        ),
    ]


def snapshot() -> snapshot_pb2.Snapshot:
    made = snapshot_pb2.Snapshot(
        master_id=MASTER_ID,
        taken_at_us=TIME_US,
        account_mode=signal_pb2.ACCOUNT_MODE_HEDGING,
        positions=[
            snapshot_pb2.OpenPosition(
                position_id=1_001,
                symbol="EURUSD",
                side=signal_pb2.SIDE_BUY,
                volume_lots_e8=10_000_000,
                open_price_e8=107_140_000,
                opened_at_us=TIME_US,
                opened_by_sequence=8,
            )
        ],
        currency="EUR",
    )
    made.as_of.sequence = 9
    return made


def expected() -> dict[str, bytes]:
    """Every vector by its name in the document."""
    vectors: dict[str, bytes] = {}
    hello = pb.Hello(version=1, master_id=MASTER_ID, key_id=KEY_ID, nonce=CLIENT_NONCE, client="example 1.0")
    vectors["hello"] = framed(pb.ClientFrame(hello=hello))
    challenge = pb.Challenge(nonce=SERVER_NONCE, server_time_us=TIME_US, version=1)
    vectors["challenge"] = framed(pb.ServerFrame(challenge=challenge))
    nonces = CLIENT_NONCE + SERVER_NONCE
    body = pb.LoginBody(version=1, master_id=MASTER_ID, license_token=LICENSE_TOKEN)
    body.acknowledged.epoch, body.acknowledged.sequence = 1, 7
    vectors["login-body"] = body.SerializeToString()
    vectors["login-mac"] = mac(SECRET, b"login", nonces, vectors["login-body"])
    login = pb.Login(body=vectors["login-body"], mac=vectors["login-mac"])
    vectors["login"] = framed(pb.ClientFrame(login=login))
    for label in ("session", "snapshot", "gapfill"):
        vectors[f"key-{label}"] = mac(SECRET, label.encode(), nonces)
    vectors["welcome"] = framed(pb.ServerFrame(welcome=welcome()))
    add_signed(vectors)
    add_server_frames(vectors)
    add_keys_of_all_lengths(vectors, nonces)
    return vectors


def welcome() -> pb.Welcome:
    made = pb.Welcome(
        session_epoch=1_800_000_000_123,
        window=4_096,
        heartbeat_ms=5_000,
        frame_bytes_max=65_536,
        batch_signals_max=512,
        signal_age_ms_max=10_000,
        durability=position_pb2.DURABILITY_APPENDED,
        snapshot_wanted=True,
    )
    made.position.epoch, made.position.sequence = 1, 7
    return made


def add_signed(vectors: dict[str, bytes]) -> None:
    batch = pb.SignalBatch(first_sequence=8, sent_at_us=TIME_US + 1_000, signals=signals())
    vectors["signals-body"] = batch.SerializeToString()
    vectors["signals-mac"] = mac(vectors["key-session"], vectors["signals-body"])
    signed = pb.SignedSignals(body=vectors["signals-body"], mac=vectors["signals-mac"])
    vectors["signals"] = framed(pb.ClientFrame(signals=signed))
    gap = pb.GapFillBody(
        from_sequence=10, to_sequence=11, reason=position_pb2.GAP_REASON_REJECTED, note="stale"
    )
    vectors["gapfill-body"] = gap.SerializeToString()
    vectors["gapfill-mac"] = mac(vectors["key-gapfill"], vectors["gapfill-body"])
    filled = pb.SignedGapFill(body=vectors["gapfill-body"], mac=vectors["gapfill-mac"])
    vectors["gapfill"] = framed(pb.ClientFrame(gap_fill=filled))
    vectors["snapshot-body"] = snapshot().SerializeToString()
    vectors["snapshot-mac"] = mac(vectors["key-snapshot"], vectors["snapshot-body"])
    taken = pb.SignedSnapshot(body=vectors["snapshot-body"], mac=vectors["snapshot-mac"])
    vectors["snapshot"] = framed(pb.ClientFrame(snapshot=taken))


def add_server_frames(vectors: dict[str, bytes]) -> None:
    ack = pb.Ack(sequence=9, durability=position_pb2.DURABILITY_APPENDED, credits=4_096)
    vectors["ack"] = framed(pb.ServerFrame(ack=ack))
    ack.snapshot_sequence = 9
    vectors["ack-of-snapshot"] = framed(pb.ServerFrame(ack=ack))
    reject = pb.Reject(
        sequence=10,
        code=pb.REJECT_CODE_INVALID_SIGNAL,
        expected_sequence=10,
        message="price_e8 must not be negative",
        field="price_e8",
    )
    vectors["reject"] = framed(pb.ServerFrame(reject=reject))
    vectors["ping"] = framed(pb.ClientFrame(ping=pb.Ping(id=1)))
    vectors["pong"] = framed(pb.ServerFrame(pong=pb.Pong(id=1, time_us=TIME_US)))
    vectors["snapshot-request"] = framed(pb.ServerFrame(snapshot_request=pb.SnapshotRequest(reason="old")))
    vectors["drain"] = framed(pb.ServerFrame(drain=pb.Drain(reconnect_after_ms=1_500)))
    vectors["bye"] = framed(pb.ClientFrame(bye=pb.Bye()))


def add_keys_of_all_lengths(vectors: dict[str, bytes], nonces: bytes) -> None:
    for length in (20, 64, 131):
        secret = b"\xaa" * length
        vectors[f"secret-{length}-login-mac"] = mac(secret, b"login", nonces, vectors["login-body"])
        vectors[f"secret-{length}-key-session"] = mac(secret, b"session", nonces)


MESSAGES = (
    *(pb.Hello, pb.Challenge, pb.Login, pb.LoginBody, pb.Welcome, pb.SignedSignals, pb.SignalBatch),
    *(pb.SignedSnapshot, pb.SignedGapFill, pb.GapFillBody, pb.Ack, pb.Reject, pb.SnapshotRequest),
    *(pb.Ping, pb.Pong, pb.Drain, pb.Bye, position_pb2.StreamPosition, signal_pb2.Signal),
    *(snapshot_pb2.Snapshot, snapshot_pb2.OpenPosition, snapshot_pb2.PendingOrder),
)
ENUMS = (
    *(position_pb2.Durability, position_pb2.GapReason, signal_pb2.SignalKind, signal_pb2.Side),
    *(signal_pb2.OrderType, signal_pb2.AccountMode),
)
_TYPES = {1: "double", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes", 13: "uint32"}


def message_rows() -> list[str]:
    """One line of the document's table for each message."""
    return [f"| {one.DESCRIPTOR.name} | {_fields_of(one.DESCRIPTOR)} |" for one in MESSAGES]


def _fields_of(descriptor) -> str:
    return ", ".join(f"{f.number} {f.name} `{_type_of(f)}`" for f in descriptor.fields)


def _type_of(field) -> str:
    if field.message_type is not None:
        name = field.message_type.name
    elif field.enum_type is not None:
        name = field.enum_type.name
    else:
        name = _TYPES[field.type]
    return f"{name} …" if field.is_repeated else name


def enum_rows() -> list[str]:
    """One line of the document's table for each enumeration."""
    return [f"| {one.DESCRIPTOR.name} | {_values_of(one.DESCRIPTOR)} |" for one in ENUMS]


def _values_of(descriptor) -> str:
    prefix = descriptor.values[0].name.removesuffix("UNSPECIFIED")
    return ", ".join(f"{v.number} {v.name.removeprefix(prefix)}" for v in descriptor.values if v.number)
