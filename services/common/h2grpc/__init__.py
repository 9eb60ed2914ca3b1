"""A gRPC server for many small server-streaming messages: HTTP/2 by h2, DATA frames written ready-made.

It serves the same handlers with the same surroundings (identity, errors, metrics, deadlines, health, reflection) as
`services.common.rpc`. Of gRPC it leaves out compression, which it refuses as the protocol says.
"""

from __future__ import annotations

from services.common.h2grpc.context import CallContext
from services.common.h2grpc.out_stream import OutStream, send_to_each
from services.common.h2grpc.server import Server, serving
from services.common.h2grpc.settings import Http2Settings

__all__ = ["CallContext", "Http2Settings", "OutStream", "Server", "send_to_each", "serving"]
