"""ArchiveService over the archive and, for what waits, the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from execution.common.v1 import position_pb2
from execution.ledger.v1 import archive_service_pb2 as pb
from execution.ledger.v1 import archive_service_pb2_grpc
from services.common.errors import InvalidInputError
from services.common.rpc import Context
from services.ledger.domain import fields
from services.ledger.log import Log
from services.ledger.servicer import convert
from services.ledger.store.archive_reading import ArchiveReader, ArchiveStatus

RECORDS_DEFAULT: Final = 10_000
RECORDS_MAX: Final = 1_000_000
RECORDS_PER_RESPONSE_MAX: Final = 1_000


class ArchiveServicer(archive_service_pb2_grpc.ArchiveServiceServicer):
    """See the contract."""

    def __init__(self, archive: ArchiveReader, logs: Sequence[Log]) -> None:
        self._archive = archive
        self._logs = logs

    async def ReadSignals(
        self, request: pb.ReadSignalsRequest, context: Context
    ) -> AsyncIterator[pb.ReadSignalsResponse]:
        """See the contract."""
        master_id = fields.master_id_of(request.master_id)
        after = position_from_pb(request.after, "after")
        records_max = fields.between(request.records_max or RECORDS_DEFAULT, 1, RECORDS_MAX, "records_max")
        async for records in self._archive.read(master_id, after, records_max=records_max):
            for start in range(0, len(records), RECORDS_PER_RESPONSE_MAX):
                yield pb.ReadSignalsResponse(records=records[start : start + RECORDS_PER_RESPONSE_MAX])

    async def GetSignal(self, request: pb.GetSignalRequest, context: Context) -> pb.GetSignalResponse:
        """See the contract."""
        position = position_from_pb(request.position, "position")
        if position[1] == 0:
            raise InvalidInputError.of_field("position", "is required")
        stored = await self._archive.get(fields.master_id_of(request.master_id), position)
        return pb.GetSignalResponse(
            signal=stored.signal, archived_at=convert.timestamp_to_pb(stored.archived_at)
        )

    async def GetArchiveStatus(
        self, request: pb.GetArchiveStatusRequest, context: Context
    ) -> pb.GetArchiveStatusResponse:
        """See the contract."""
        pending = [await log.pending() for log in self._logs]
        return status_to_pb(await self._archive.status(), sum(pending))


def position_from_pb(position: position_pb2.StreamPosition, field: str) -> tuple[int, int]:
    """The position.

    Raises:
        InvalidInputError: it is none.
    """
    return fields.position_of(position.epoch, position.sequence, field)


def status_to_pb(status: ArchiveStatus, pending_entries: int) -> pb.GetArchiveStatusResponse:
    """The status as message."""
    return pb.GetArchiveStatusResponse(
        positions=(
            position_pb2.MasterPosition(
                master_id=master_id, position=position_pb2.StreamPosition(epoch=epoch, sequence=sequence)
            )
            for master_id, (epoch, sequence) in status.heads
        ),
        signal_count=status.signal_count,
        pending_entries=pending_entries,
    )
