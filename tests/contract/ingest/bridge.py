"""A bridge that publishes over gRPC: it signs, sends and shows what comes back."""

from __future__ import annotations

import os

import grpc

from execution.ingest.v1 import frames_pb2
from execution.ingest.v1 import ingest_service_pb2 as pb
from execution.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.unit.ingest.signing import Credentials, Keys, login_body


class Bridge:
    """A client of Publish."""

    def __init__(self, stub: IngestServiceStub, who: Credentials) -> None:
        self.who = who
        self.call = stub.Publish()
        self.nonce = os.urandom(16)

    async def send(self, frame: frames_pb2.ClientFrame) -> None:
        await self.call.write(pb.PublishRequest(frame=frame))

    async def receive(self) -> frames_pb2.ServerFrame | None:
        while True:
            response = await self.call.read()
            if response is grpc.aio.EOF:
                return None
            if not response.frame.HasField("ping"):
                return response.frame

    async def reject(self) -> frames_pb2.Reject:
        """The next frame that is no Ack, which must be a Reject."""
        while (frame := await self.receive()) is not None:
            if not frame.HasField("ack"):
                assert frame.HasField("reject"), frame
                return frame.reject
        raise AssertionError("the stream ended without a Reject")

    async def acknowledged_up_to(self, sequence: int) -> frames_pb2.Ack:
        while (frame := await self.receive()) is not None:
            assert frame.HasField("ack"), frame
            if frame.ack.sequence == sequence:
                return frame.ack
        raise AssertionError("the stream ended without the Ack")

    async def greet(self) -> None:
        hello = frames_pb2.Hello(
            version=1, master_id=self.who.master_id, key_id=self.who.key_id, nonce=self.nonce
        )
        await self.send(frames_pb2.ClientFrame(hello=hello))
        challenge = (await self.receive()).challenge
        self.keys = Keys(self.who.secret, self.nonce, challenge.nonce)

    async def log_in(self, acknowledged: tuple[int, int] = (0, 0)) -> frames_pb2.Welcome:
        await self.greet()
        await self.send(self.keys.login(login_body(self.who, acknowledged).SerializeToString()))
        return (await self.receive()).welcome
