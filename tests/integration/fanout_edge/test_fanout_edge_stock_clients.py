"""Clients that others wrote read thousands of messages over many streams of one connection, with and without TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpclib.client import Channel as GrpclibChannel

from ecp_betterproto.execution.fanout import v1 as betterproto_pb
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc
from tests.integration.fanout_edge.counting_service import LICENSE, SUBSCRIBE, Edge, count, counting_edge

TOOLS = Path(sys.executable).parent


@pytest.fixture(params=["plain", "tls"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Edge]:
    async with counting_edge(tmp_path if request.param == "tls" else None) as edge:
        yield edge


async def test_grpc_aio_reads_many_streams_of_one_connection(edge: Edge) -> None:
    async with edge.channel() as channel:
        assert await asyncio.gather(*(count(channel, 1_500) for _ in range(20))) == [1_500] * 20


async def test_grpc_aio_with_small_windows_reads_everything(edge: Edge) -> None:
    options = (("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0))
    async with edge.channel(*options) as channel:
        assert await asyncio.gather(*(count(channel, 1_100) for _ in range(5))) == [1_100] * 5


async def test_sync_grpcio_reads_21_streams_of_one_connection(edge: Edge) -> None:
    def read(channel: grpc.Channel) -> int:
        last = 0
        request = pb.SubscribeRequest(client="1200")
        for response in fanout_service_pb2_grpc.FanoutServiceStub(channel).Subscribe(
            request, metadata=LICENSE
        ):
            assert response.signals.signals[0].sequence == last + 1
            last += 1
        return last

    def read_all() -> list[int]:
        if edge.ca is None:
            channel = grpc.insecure_channel(edge.target)
        else:
            channel = grpc.secure_channel(edge.target, grpc.ssl_channel_credentials(edge.ca))
        with channel, ThreadPoolExecutor(21) as pool:
            return list(pool.map(read, [channel] * 21))

    assert await asyncio.to_thread(read_all) == [1_200] * 21


async def test_grpclib_reads_the_betterproto_flavour(edge: Edge) -> None:
    context = None if edge.ca_file is None else ssl.create_default_context(cafile=str(edge.ca_file))
    if context is not None:
        context.set_alpn_protocols(["h2"])
    channel = GrpclibChannel("localhost", edge.port, ssl=context)
    stub = betterproto_pb.FanoutServiceAsyncStub(channel)

    async def read() -> int:
        last = 0
        request = betterproto_pb.SubscribeRequest(client="300")
        async for response in stub.subscribe(request, metadata=dict(LICENSE)):
            assert response.signals is not None
            assert response.signals.signals[0].sequence == last + 1
            last += 1
        return last

    try:
        assert await asyncio.gather(*(read() for _ in range(4))) == [300] * 4
    finally:
        channel.close()


async def lines_of(*command: str | Path) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_grpcurl_finds_the_service_by_reflection_and_streams(edge: Edge) -> None:
    tls = ["-plaintext"] if edge.ca_file is None else ["-cacert", str(edge.ca_file)]
    header = ["-H", "authorization: Bearer a-license", "-d", json.dumps({"client": "2100"})]
    lines = await lines_of(TOOLS / "grpcurl", *tls, *header, edge.target, SUBSCRIBE[1:])
    assert sum('"signals": {' in line for line in lines) == 2_100


async def test_buf_curl_finds_the_service_by_reflection_and_streams(edge: Edge) -> None:
    scheme = "http" if edge.ca_file is None else "https"
    tls = ["--http2-prior-knowledge"] if edge.ca_file is None else ["--cacert", str(edge.ca_file)]
    lines = await lines_of(
        TOOLS / "buf",
        "curl",
        "--protocol",
        "grpc",
        *tls,
        "--header",
        "authorization: Bearer a-license",
        "--data",
        json.dumps({"client": "2100"}),
        f"{scheme}://{edge.target}{SUBSCRIBE}",
    )
    assert sum(line == '  "signals": {' for line in lines) == 2_100


async def test_a_thousand_connections_with_one_stream_each(tmp_path: Path) -> None:
    async with counting_edge() as edge:
        for _ in range(4):
            channels = [edge.channel() for _ in range(250)]
            assert await asyncio.gather(*(count(channel, 20) for channel in channels)) == [20] * 250
            await asyncio.gather(*(channel.close() for channel in channels))


async def test_a_compressed_request_is_refused_and_told_what_would_do(edge: Edge) -> None:
    async with edge.channel() as channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        call = stub.Subscribe(
            pb.SubscribeRequest(client="1" * 64), metadata=LICENSE, compression=grpc.Compression.Gzip
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
