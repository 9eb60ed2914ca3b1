"""A client written from docs/protocol.md alone, as for a platform with nothing but sockets and a plain SHA-256.

It knows neither protobuf nor HMAC from any library, and nothing of this project's code; field numbers and rules are
the document's. It blocks, as its readers' programs will.
"""

from __future__ import annotations

import os
import socket
import time
from hashlib import sha256

ANSWER_SECONDS_MAX = 20

# ClientFrame and ServerFrame
HELLO, LOGIN, SIGNALS, SNAPSHOT, GAP_FILL, PING, PONG, BYE = range(1, 9)
CHALLENGE, WELCOME, ACK, REJECT, SNAPSHOT_REQUEST, SERVER_PING, SERVER_PONG, DRAIN, SERVER_BYE = range(1, 10)

OPEN, CLOSE, PENDING_PLACE = 1, 3, 6
BUY = 1

Fields = dict[int, list]


# Protobuf


def varint(value: int) -> bytes:
    """An unsigned number, or a negative one as its two's complement in 64 bits."""
    value %= 1 << 64
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def message(*fields: tuple[int, int | str | bytes | list[bytes]]) -> bytes:
    """A message of (number, value) in ascending order; what is 0 or empty is left out."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number * 8) + varint(value) if value else b""
            continue
        for one in value if isinstance(value, list) else [value] if value else []:
            data = one.encode() if isinstance(one, str) else one
            out += varint(number * 8 + 2) + varint(len(data)) + data
    return out


def parsed(data: bytes) -> Fields:
    """The values of each field, in order."""
    fields: Fields = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value += (byte % 128) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        kind = tag % 8
        if kind == 0:
            value: int | bytes = number()
        else:
            length = {1: 8, 5: 4}[kind] if kind != 2 else number()
            value = data[at : at + length]
            at += length
        fields.setdefault(tag // 8, []).append(value)
    return fields


def first(fields: Fields, number: int, default: int | bytes = 0):
    return fields.get(number, [default])[0]


# HMAC


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    if len(key) > 64:
        key = sha256(key).digest()
    key += bytes(64 - len(key))
    inner = sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


# The protocol


def framed(kind: int, content: bytes) -> bytes:
    # A frame's only field is there even when the message in it is empty.
    payload = varint(kind * 8 + 2) + varint(len(content)) + content
    return len(payload).to_bytes(4, "big") + payload


class DocumentClient:
    """One session of one master."""

    def __init__(self, master_id: int, key_id: str, secret: bytes, license_token: str) -> None:
        self.master_id, self.key_id = master_id, key_id
        self.secret, self.license_token = secret, license_token
        self.nonce = os.urandom(16)
        self.clock_offset_us = 0
        self.welcome: Fields = {}
        self.sequence = 0
        self.session_key = self.snapshot_key = self.gap_key = b""
        self.socket: socket.socket | None = None

    # Frames to send

    def hello(self, client: str = "") -> bytes:
        content = message((1, 1), (3, self.master_id), (4, self.key_id), (5, self.nonce), (6, client))
        return framed(HELLO, content)

    def login(self, server_nonce: bytes, epoch: int = 0, sequence: int = 0) -> bytes:
        acknowledged = message((1, epoch), (2, sequence))
        body = message((1, 1), (2, self.master_id), (3, self.license_token), (4, acknowledged))
        nonces = self.nonce + server_nonce
        self.session_key = hmac_sha256(self.secret, b"session" + nonces)
        self.snapshot_key = hmac_sha256(self.secret, b"snapshot" + nonces)
        self.gap_key = hmac_sha256(self.secret, b"gapfill" + nonces)
        return framed(LOGIN, message((1, body), (2, hmac_sha256(self.secret, b"login" + nonces + body))))

    def signals(self, first_sequence: int, signals: list[bytes], sent_at_us: int) -> bytes:
        body = message((1, first_sequence), (2, sent_at_us), (3, signals))
        return framed(SIGNALS, message((1, body), (2, hmac_sha256(self.session_key, body))))

    def gap_fill(self, start: int, end: int, reason: int, note: str = "") -> bytes:
        body = message((1, start), (2, end), (3, reason), (4, note))
        return framed(GAP_FILL, message((1, body), (2, hmac_sha256(self.gap_key, body))))

    def snapshot(self, sequence: int, taken_at_us: int, positions: list[bytes], currency: str = "") -> bytes:
        as_of = message((2, sequence))
        body = message(
            (1, self.master_id), (2, as_of), (3, taken_at_us), (4, 1), (5, positions), (8, currency)
        )
        return framed(SNAPSHOT, message((1, body), (2, hmac_sha256(self.snapshot_key, body))))

    # A session

    def connect(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=ANSWER_SECONDS_MAX)
        self.socket.sendall(self.hello("document 1.0"))
        challenge = self.expect(CHALLENGE)
        self.clock_offset_us = first(challenge, 2) - time.time_ns() // 1_000
        self.socket.sendall(self.login(first(challenge, 1)))
        self.welcome = self.expect(WELCOME)
        self.sequence = first(parsed(first(self.welcome, 2, b"")), 2)

    def send(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(data)

    def receive(self) -> tuple[int, Fields]:
        """The next frame that is no Ping; Pings are answered."""
        while True:
            length = int.from_bytes(self._exactly(4), "big")
            ((kind, (content, *_)),) = parsed(self._exactly(length)).items()
            if kind != SERVER_PING:
                return kind, parsed(content)
            self.send(framed(PONG, message((1, first(parsed(content), 1)))))

    def expect(self, kind: int) -> Fields:
        found, fields = self.receive()
        assert found == kind, f"{found} came instead of {kind}: {fields}"
        return fields

    def acknowledged(self, sequence: int) -> Fields:
        """The Ack that covers `sequence`."""
        while True:
            ack = self.expect(ACK)
            if first(ack, 1) >= sequence:
                return ack

    def close(self) -> None:
        self.send(framed(BYE, b""))
        while True:
            kind, _ = self.receive()
            if kind == SERVER_BYE:
                break
        assert self.socket is not None
        assert self.socket.recv(1) == b""
        self.socket.close()

    def server_time_us(self) -> int:
        return time.time_ns() // 1_000 + self.clock_offset_us

    def _exactly(self, length: int) -> bytes:
        assert self.socket is not None
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the connection ended"
            data += more
        return data


def signal(
    kind: int,
    position_id: int,
    occurred_at_us: int,
    *,
    side: int = 0,
    volume_e8: int = 0,
    price_e8: int = 0,
    stop_e8: int = 0,
    profit_e8: int = 0,
) -> bytes:
    return message(
        *((1, kind), (2, position_id), (3, "EURUSD"), (4, side), (5, volume_e8), (6, price_e8)),
        *((7, stop_e8), (8, profit_e8), (9, occurred_at_us)),
    )


def open_position(position_id: int, sequence: int, opened_at_us: int) -> bytes:
    return message(
        *((1, position_id), (2, "EURUSD"), (3, BUY), (4, 10_000_000), (5, 107_140_000)),
        *((8, opened_at_us), (9, sequence)),
    )
