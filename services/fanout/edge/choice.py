"""Finds the writer that fits the server a call came through; it writes nothing."""

from __future__ import annotations

from services.common import rpc
from services.common.h2grpc import CallContext
from services.fanout.edge.aio import AioStreamWriter
from services.fanout.edge.h2 import H2StreamWriter


def writer_of(context: rpc.Context) -> AioStreamWriter | H2StreamWriter:
    """A writer for the call."""
    served_by: object = (
        context  # the contexts of both servers look alike to handlers, without common ancestors
    )
    if isinstance(served_by, CallContext):
        return H2StreamWriter(served_by.out)
    return AioStreamWriter(context)
