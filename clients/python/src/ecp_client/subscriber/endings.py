"""How a stream can end, and what each end asks of the client. Pure; it reads gRPC's status details."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from ecp_client.positions import Position
from execution.fanout.v1 import fanout_service_pb2 as pb

STATUS_DETAILS_KEY = "grpc-status-details-bin"
_LENGTH_DELIMITED = 2


class Outlook(enum.Enum):
    """What to do after a stream has ended."""

    RETRY = enum.auto()
    """Open another one, backing off."""
    AGAIN = enum.auto()
    """Open another one at once: we ended it ourselves, or the server told when to come back."""
    TOKEN = enum.auto()
    """The license does not count: get another token, then as REFUSED."""
    REFUSED = enum.auto()
    """Open another one, but rarely, until somebody changes something."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the server has instead of a position that it no longer has."""

    oldest: Position
    head: Position
    snapshot: Position | None


@dataclass(frozen=True, slots=True)
class PositionsUnavailable:
    """The details of OUT_OF_RANGE; empty when the server gave none, and then all masters are meant."""

    masters: Mapping[int, Offer] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Why a stream ended. `code` is the gRPC status code's name."""

    outlook: Outlook
    code: str
    reason: str
    unavailable: PositionsUnavailable | None = None


_OUTLOOKS = {
    "OK": Outlook.RETRY,
    "UNAUTHENTICATED": Outlook.TOKEN,
    "PERMISSION_DENIED": Outlook.REFUSED,
    "INVALID_ARGUMENT": Outlook.REFUSED,
    "UNIMPLEMENTED": Outlook.REFUSED,
    "FAILED_PRECONDITION": Outlook.REFUSED,
    "OUT_OF_RANGE": Outlook.AGAIN,
}


def stream_end(code: str, details: str, status_details: bytes | None) -> StreamEnd:
    """What a gRPC status means; `status_details` is the trailing metadata's google.rpc.Status."""
    unavailable = None
    if code == "OUT_OF_RANGE":
        unavailable = positions_unavailable(status_details or b"")
    return StreamEnd(_OUTLOOKS.get(code, Outlook.RETRY), code, details, unavailable)


def positions_unavailable(status: bytes) -> PositionsUnavailable:
    """The PositionUnavailable details in a serialized google.rpc.Status.

    Read by hand (Status.details is field 3, Any.type_url 1, Any.value 2): the message classes would need another
    distribution.
    """
    offers: dict[int, Offer] = {}
    for number, detail in _fields(status):
        if number != 3:
            continue
        parts = dict(_fields(detail))
        if not parts.get(1, b"").endswith(b"/" + pb.PositionUnavailable.DESCRIPTOR.full_name.encode()):
            continue
        try:
            offer = pb.PositionUnavailable.FromString(parts.get(2, b""))
        except DecodeError:
            continue
        offers[offer.master_id] = Offer(
            Position.from_pb(offer.oldest),
            Position.from_pb(offer.head),
            Position.from_pb(offer.snapshot) if offer.HasField("snapshot") else None,
        )
    return PositionsUnavailable(offers)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of a message's length-delimited fields; others are passed over. Ends at what is no message."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        value, offset = _varint(data, offset)
        if tag & 7 == _LENGTH_DELIMITED:
            yield tag >> 3, data[offset : offset + value]
            offset += value
        elif tag & 7:
            return


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while offset < len(data):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return value, offset
