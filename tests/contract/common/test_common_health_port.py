"""A plaintext port for health alone, beside a gRPC port that speaks TLS, for both kinds of server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import h2grpc, rpc
from services.common.errors import ConfigurationError
from services.common.settings import load
from tests.contract.common.example_service import Example, add_to_server, example_settings, example_values

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

Serving = Callable[..., AbstractAsyncContextManager[Any]]


def serving_aio(**chosen: Any) -> AbstractAsyncContextManager[Any]:
    settings = example_settings(**chosen)
    registrations = [rpc.registration(add_to_server, Example())]
    return rpc.serving(settings, registrations, authorizer=rpc.authorizer(settings))


def serving_h2(**chosen: Any) -> AbstractAsyncContextManager[Any]:
    settings = load(h2grpc.Http2Settings, **example_values(**chosen))
    registrations = [rpc.registration(add_to_server, Example())]
    return h2grpc.serving(settings, registrations, authorizer=rpc.authorizer(settings))


@pytest.fixture(params=[serving_aio, serving_h2])
def serving(request: pytest.FixtureRequest) -> Serving:
    chosen: Serving = request.param
    return chosen


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    return {"tls_certificate_file": tmp_path / "certificate", "tls_key_file": tmp_path / "key"}


@pytest.fixture
def free_port() -> Iterator[int]:
    """Held without listening, so that nobody else gets it meanwhile."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        holder.close()
        yield port


async def health_of(port: int, service: str = "") -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)).status


async def test_probes_without_tls_see_what_the_tls_port_says(
    serving: Serving, files: dict[str, Path], free_port: int
) -> None:
    async with serving(**files, health_bind_address=f"127.0.0.1:{free_port}") as server:
        (service,) = server.services
        assert [await health_of(free_port, name) for name in ("", service)] == [SERVING, SERVING]
        await server.set_serving(service, False)
        assert [await health_of(free_port, name) for name in ("", service)] == [SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(server.port)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nothing_but_health_answers_there(serving: Serving, free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    async with (
        serving(health_bind_address=address) as server,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for service in (server.services[0], "grpc.reflection.v1alpha.ServerReflection"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{service}/UnaryUnary")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_one_clear_line(serving: Serving) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"HEALTH_BIND_ADDRESS: cannot listen on {address}: "):
            async with serving(health_bind_address=address):
                pass
