"""Checks what subscribers ask for; it knows nothing of the log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from execution.common.v1 import position_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.errors import InvalidInputError
from services.fanout.domain.position import EPOCH_MAX, SEQUENCE_MAX, ZERO, Position

MASTERS_MAX: Final = 100
CLIENT_BYTES_MAX: Final = 64
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
MASTER_ID_MAX: Final = 2**63 - 1


class Begin(Enum):
    """Where a master's stream begins."""

    AFTER = "after"
    SNAPSHOT = "snapshot"
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Start:
    """Where one master's stream begins; `after` counts for AFTER."""

    master_id: int
    begin: Begin
    after: Position = ZERO


def starts_of(request: pb.SubscribeRequest) -> list[Start]:
    """What a SubscribeRequest asks for; empty when it asks for everything from now.

    Raises:
        InvalidInputError: too many masters, one twice or none, an impossible position, or too long a name.
    """
    if len(request.client.encode()) > CLIENT_BYTES_MAX:
        raise InvalidInputError.of_field("client", f"at most {CLIENT_BYTES_MAX} bytes")
    _check_masters([one.master_id for one in request.masters], "masters")
    return [_start(index, one) for index, one in enumerate(request.masters)]


def positions_of(request: pb.AcknowledgeRequest) -> list[tuple[int, Position]]:
    """The places that an AcknowledgeRequest names.

    Raises:
        InvalidInputError: none or too many, a master twice or none, or an impossible position.
    """
    if not request.positions:
        raise InvalidInputError.of_field("positions", "at least one is needed")
    _check_masters([one.master_id for one in request.positions], "positions")
    return [
        (one.master_id, _position(one.position, f"positions[{index}].position"))
        for index, one in enumerate(request.positions)
    ]


def page_of(request: pb.ListStreamsRequest) -> tuple[int, int]:
    """(the stream_id after which the page begins, its size).

    Raises:
        InvalidInputError: size or token.
    """
    size = request.page_size or PAGE_SIZE_DEFAULT
    if size > PAGE_SIZE_MAX:
        raise InvalidInputError.of_field("page_size", f"at most {PAGE_SIZE_MAX}")
    token = request.page_token
    if not token:
        return 0, size
    if not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise InvalidInputError.of_field("page_token", "not a token of this call")
    return int(token), size


def _check_masters(master_ids: list[int], field: str) -> None:
    if len(master_ids) > MASTERS_MAX:
        raise InvalidInputError.of_field(field, f"at most {MASTERS_MAX}")
    seen: set[int] = set()
    for index, master_id in enumerate(master_ids):
        if not 1 <= master_id <= MASTER_ID_MAX:
            raise InvalidInputError.of_field(f"{field}[{index}].master_id", "must be in 1 to 2^63 - 1")
        if master_id in seen:
            raise InvalidInputError.of_field(f"{field}[{index}].master_id", "named twice")
        seen.add(master_id)


def _start(index: int, start: pb.MasterStart) -> Start:
    kind = start.WhichOneof("start")
    if kind == "after":
        position = _position(start.after, f"masters[{index}].after")
        return Start(start.master_id, Begin.AFTER, position)
    if kind == "from_snapshot":
        return Start(start.master_id, Begin.SNAPSHOT)
    return Start(start.master_id, Begin.NOW)


def _position(position: position_pb2.StreamPosition, field: str) -> Position:
    if position.sequence > SEQUENCE_MAX or position.epoch > EPOCH_MAX:
        raise InvalidInputError.of_field(field, "out of range")
    if position.epoch == 0 and position.sequence != 0:
        raise InvalidInputError.of_field(field, "epoch 0 is only in the zero position")
    return Position(position.epoch, position.sequence)
