"""Asks masters for snapshots through the front door; which process a master is connected to, it finds by trying."""

from __future__ import annotations

import asyncio
import logging
import socket

from execution.ingest.v1 import ingest_service_pb2 as ingest_pb
from execution.ingest.v1 import ingest_service_pb2_grpc
from services.common import rpc
from services.common.errors import FailedPreconditionError, ServiceError
from services.common.settings import Address

_log = logging.getLogger(__name__)


class FrontDoor:
    """The front door's processes, behind a channel that takes them in turn."""

    def __init__(
        self, stub: ingest_service_pb2_grpc.IngestServiceAsyncStub, address: Address, *, processes_max: int
    ) -> None:
        self._stub = stub
        self._address = address
        self._processes_max = processes_max

    async def request_snapshot(self, master_id: int) -> None:
        """Asks the master for a new snapshot, if it is connected anywhere; what comes of it is seen in the log."""
        request = ingest_pb.RequestSnapshotRequest(
            master_id=master_id, reason="a subscriber begins with a snapshot"
        )
        for _ in range(await self._processes()):
            try:
                with rpc.peer_errors("ingest"):
                    await self._stub.RequestSnapshot(request)
                return
            except FailedPreconditionError:
                continue
            except ServiceError as error:
                _log.warning("master %s was not asked for a snapshot: %s", master_id, error.message)
                return

    async def _processes(self) -> int:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        except OSError:
            return 1
        return max(1, min(self._processes_max, len({entry[4] for entry in found})))


async def request_from_nobody(master_id: int) -> None:
    """Stands for a front door whose address is not configured: only snapshots that come by themselves are used."""
    _log.debug("INGEST_ADDRESS is not set: master %s is not asked for a snapshot", master_id)
