"""A server that ends says its last words: every stock client reads them, then a status, and loses nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpclib.client import Channel as GrpclibChannel
from grpclib.exceptions import GRPCError
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame

from ecp_betterproto.execution.fanout import v1 as betterproto_pb
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge.attacker import attacking
from tests.integration.fanout_edge.counting_service import (
    LICENSE,
    SUBSCRIBE,
    UNTIL_DRAINED,
    Edge,
    counting_edge,
)

TOOLS = Path(sys.executable).parent
REQUEST = pb.SubscribeRequest(client=UNTIL_DRAINED)

Read = tuple[list[str], str]
"""The events that came, and the status's name."""


async def grpc_aio(edge: Edge) -> Read:
    events: list[str] = []
    async with edge.channel() as channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        try:
            async for response in stub.Subscribe(REQUEST, metadata=LICENSE):
                events.append(str(response.WhichOneof("event")))  # noqa: PERF401  # it may fail on the way
        except grpc.aio.AioRpcError as error:
            return events, error.code().name
    return events, "OK"


async def grpc_sync(edge: Edge) -> Read:
    def read() -> Read:
        events: list[str] = []
        if edge.ca is None:
            channel = grpc.insecure_channel(edge.target)
        else:
            channel = grpc.secure_channel(edge.target, grpc.ssl_channel_credentials(edge.ca))
        with channel:
            stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
            try:
                for response in stub.Subscribe(REQUEST, metadata=LICENSE):
                    events.append(str(response.WhichOneof("event")))  # noqa: PERF401  # it may fail on the way
            except grpc.RpcError as error:
                return events, error.code().name
        return events, "OK"

    return await asyncio.to_thread(read)


async def grpclib(edge: Edge) -> Read:
    context = None if edge.ca_file is None else ssl.create_default_context(cafile=str(edge.ca_file))
    if context is not None:
        context.set_alpn_protocols(["h2"])
    channel = GrpclibChannel("localhost", edge.port, ssl=context)
    events: list[str] = []
    try:
        stub = betterproto_pb.FanoutServiceAsyncStub(channel, metadata=dict(LICENSE))
        async for response in stub.subscribe(betterproto_pb.SubscribeRequest(client=UNTIL_DRAINED)):
            events.append(  # noqa: PERF401  # it may fail on the way
                "drain" if response.drain is not None else "signals"
            )
    except GRPCError as error:
        return events, error.status.name
    finally:
        channel.close()
    return events, "OK"


async def said_by(*command: str | Path) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return out.decode(), err.decode()


def events_in(out: str) -> list[str]:
    """The names of the events in a row of JSON documents."""
    decoder, events = json.JSONDecoder(), []
    while out := out.lstrip():
        document, end = decoder.raw_decode(out)
        events += list(document)
        out = out[end:]
    return events


async def grpcurl(edge: Edge) -> Read:
    tls = ["-plaintext"] if edge.ca_file is None else ["-cacert", str(edge.ca_file)]
    out, err = await said_by(
        TOOLS / "grpcurl", *tls, "-H", "authorization: Bearer a-license",
        "-d", json.dumps({"client": UNTIL_DRAINED}), edge.target, SUBSCRIBE[1:],
    )  # fmt: skip
    return events_in(out), "UNAVAILABLE" if "Code: Unavailable" in err else err


async def buf_curl(edge: Edge) -> Read:
    scheme = "http" if edge.ca_file is None else "https"
    tls = ["--http2-prior-knowledge"] if edge.ca_file is None else ["--cacert", str(edge.ca_file)]
    out, err = await said_by(
        TOOLS / "buf", "curl", "--protocol", "grpc", *tls, "--header", "authorization: Bearer a-license",
        "--data", json.dumps({"client": UNTIL_DRAINED}), f"{scheme}://{edge.target}{SUBSCRIBE}",
    )  # fmt: skip
    return events_in(out), "UNAVAILABLE" if '"code": "unavailable"' in err else err


CLIENTS: list[Callable[[Edge], Awaitable[Read]]] = [grpc_sync, grpc_aio, grpclib, grpcurl, buf_curl]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_every_stock_client_reads_the_last_words_and_a_clean_status(tls: bool, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(counting_edge(tmp_path if tls else None))
        reading = [asyncio.ensure_future(client(edge)) for client in CLIENTS]
        async with asyncio.timeout(30):
            while edge.counting.running < len(CLIENTS):  # noqa: ASYNC110  # clients open streams when they like
                await asyncio.sleep(0.01)
        await stack.aclose()
        read = dict(zip((client.__name__ for client in CLIENTS), await asyncio.gather(*reading), strict=True))
    assert read == {client.__name__: (["signals", "drain"], "UNAVAILABLE") for client in CLIENTS}


async def test_streams_that_end_themselves_do_so_before_the_goaway() -> None:
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(counting_edge())
        async with attacking(edge.port) as peer:
            body = prefixed(REQUEST.SerializeToString())
            await peer.send(peer.request(1, is_complete=False), DataFrame(1, data=body, flags=["END_STREAM"]))
            assert await peer.data(1)
            hearing = asyncio.create_task(peer.goaway())
            await stack.aclose()
            assert (await hearing).error_code == ErrorCodes.NO_ERROR
    kinds = [type(frame) for frame in peer.received if isinstance(frame, HeadersFrame | GoAwayFrame)]
    assert kinds[:3] == [HeadersFrame, HeadersFrame, GoAwayFrame]
