"""Stands where the ledger would and lets every master of a benchmark in; it keeps nothing and is for loopback only."""

from __future__ import annotations

import hashlib
import time
from contextlib import AbstractAsyncContextManager
from typing import Final

import grpc

from bench.stand_in import standing_in
from ecp_client.master.handshake import Identity
from execution.ledger.v1 import master_service_pb2 as pb
from execution.ledger.v1 import master_service_pb2_grpc as pb_grpc

SERVICE_TOKEN: Final = "service-token-of-a-benchmark"
_KEY_ID: Final = "key-of-a-benchmark"
_LICENSE_TOKEN: Final = "license-of-a-benchmark"
_LICENSE_SECONDS: Final = 30 * 86_400


def identity(master_id: int) -> Identity:
    """What a master logs in with; the secret follows from its number."""
    secret = hashlib.sha256(b"benchmark %d" % master_id).digest()
    return Identity(master_id, _KEY_ID, secret, _LICENSE_TOKEN, "bench")


class Authority(pb_grpc.MasterServiceServicer):
    """Knows `identity(n)` for every n."""

    async def AuthorizeMaster(
        self,
        request: pb.AuthorizeMasterRequest,
        context: grpc.aio.ServicerContext[pb.AuthorizeMasterRequest, pb.AuthorizeMasterResponse],
    ) -> pb.AuthorizeMasterResponse:
        """Says yes to those who name the key and license of a benchmark."""
        known = identity(request.master_id)
        if (request.key_id, request.license_token) != (known.key_id, known.license_token):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such master, key or license")
        answer = pb.AuthorizeMasterResponse(secret=known.secret, license_id=f"license-{request.master_id}")
        answer.master.master_id = request.master_id
        answer.expires_at.FromSeconds(int(time.time()) + _LICENSE_SECONDS)
        return answer


def answering() -> AbstractAsyncContextManager[int]:
    """Serves on the loopback until the block ends; gives the port."""

    def add(server: grpc.aio.Server) -> None:
        pb_grpc.add_MasterServiceServicer_to_server(Authority(), server)  # type: ignore[abstract]  # one rpc is asked of it

    return standing_in(add)
