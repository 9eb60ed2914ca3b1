"""A stock gRPC client with a token."""

from __future__ import annotations

from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub


class Operator:
    """Calls with a token; `metadata` as a client would send it."""

    def __init__(self, stub: IngestServiceStub, token: str | None) -> None:
        self.stub = stub
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    async def call(self, name: str, request: object) -> object:
        return await getattr(self.stub, name)(request, metadata=self.metadata, timeout=20)
