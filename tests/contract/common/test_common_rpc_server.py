"""The life of a gRPC server: start, health, reflection, drain, TLS; and of channels while servers come and go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common import errors, rpc, tls
from services.common.errors import ConfigurationError
from services.common.settings import Address
from tests.contract.common.example_service import (
    SERVICE,
    SERVICE_TOKEN,
    Example,
    add_to_server,
    call,
    calling_example,
    example_settings,
    failure,
    serving_example,
)

GRPCURL = str(Path(sys.executable).parent / "grpcurl")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_health_knows_the_process_and_each_service_and_needs_no_token() -> None:
    async with calling_example(None) as (served, channel):
        assert [await health_of(channel, name) for name in ("", SERVICE)] == [SERVING, SERVING]
        await served.server.set_serving(SERVICE, False)
        assert [await health_of(channel, name) for name in ("", SERVICE)] == [SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(KeyError):
            await served.server.set_serving("no.such.Service", False)


async def test_reflection_lists_the_services_and_needs_no_token() -> None:
    async with calling_example(None) as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def requests() -> object:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        answers = [answer async for answer in stub.ServerReflectionInfo(requests())]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with serving_example() as served:
        with pytest.raises(ConfigurationError) as caught:
            async with serving_example(grpc_bind_address=str(served.address)):
                pass
    assert str(caught.value).startswith(f"GRPC_BIND_ADDRESS: cannot listen on {served.address}: ")
    assert "\n" not in str(caught.value)


async def test_rules_for_methods_that_are_not_served_are_refused() -> None:
    settings = example_settings()
    rules = rpc.authorizer(settings, {f"/{SERVICE}/Misspelt": set()})
    with pytest.raises(ValueError, match="Misspelt"):
        async with rpc.serving(settings, [rpc.registration(add_to_server, Example())], authorizer=rules):
            pass


async def test_the_end_lets_running_calls_finish_and_refuses_new_ones() -> None:
    async with AsyncExitStack() as channels:
        servers = AsyncExitStack()
        served = await servers.enter_async_context(serving_example(drain_grace_seconds=10))
        channel = await channels.enter_async_context(rpc.channel(served.address, token=SERVICE_TOKEN))
        served.example.hold = asyncio.Event()
        running = asyncio.create_task(call(channel, "UnaryUnary"))
        await wait_for_event(served.example, "held")
        ending = asyncio.create_task(servers.aclose())
        await served.server.draining.wait()
        async with rpc.channel(served.address, token=SERVICE_TOKEN) as late:
            assert isinstance(await failure(call(late, "UnaryUnary", timeout=2)), errors.UnavailableError)
        assert not ending.done()
        served.example.hold.set()
        assert await running == [b"hello:service:"]
        await ending


async def wait_for_event(example: Example, event: str) -> None:
    while event not in example.events:  # noqa: ASYNC110  # a list has no event to wait for
        await asyncio.sleep(0.005)


async def test_calls_that_outlive_the_grace_are_cancelled_and_told_unavailable() -> None:
    async with AsyncExitStack() as channels:
        async with serving_example(drain_grace_seconds=0.1) as served:
            channel = await channels.enter_async_context(rpc.channel(served.address, token=SERVICE_TOKEN))
            served.example.hold = asyncio.Event()
            running = asyncio.create_task(call(channel, "UnaryUnary", timeout=10))
            await wait_for_event(served.example, "held")
        assert served.example.events == ["held", "cancelled"]
        assert isinstance(await failure(running), errors.UnavailableError)


async def test_health_says_not_serving_while_the_server_drains() -> None:
    async with AsyncExitStack() as channels:
        async with serving_example(drain_grace_seconds=5) as served:
            channel = await channels.enter_async_context(rpc.channel(served.address, token=None))
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            seen = [(await watch.read()).status]
        seen.append((await watch.read()).status)
        assert seen == [SERVING, NOT_SERVING]
        watch.cancel()


async def test_a_server_that_starts_later_is_found() -> None:
    async with serving_example() as first:
        address = first.address
    async with rpc.channel(address, token=SERVICE_TOKEN) as channel:
        assert isinstance(await failure(call(channel, "UnaryUnary", timeout=1)), errors.UnavailableError)
        async with serving_example(grpc_bind_address=str(address)):
            assert await call(channel, "UnaryUnary", wait_for_ready=True, timeout=20) == [b"hello:service:"]


async def test_a_server_restart_costs_idempotent_calls_nothing_while_another_serves() -> None:
    """Two servers behind one name: `localhost` resolves to both loopback addresses, each with one server."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving_example(grpc_bind_address="127.0.0.1:0"))
        port = first.address.port
        try:
            second_stack = AsyncExitStack()
            await second_stack.enter_async_context(serving_example(grpc_bind_address=f"[::1]:{port}"))
        except ConfigurationError:
            pytest.skip("this machine has no IPv6 loopback")
        channel = await stack.enter_async_context(
            rpc.channel(Address("localhost", port), token=SERVICE_TOKEN, idempotent=[SERVICE])
        )
        for _ in range(20):
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]
        await second_stack.aclose()
        for _ in range(20):
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]


async def test_connections_that_reach_their_age_are_replaced_without_failures() -> None:
    async with calling_example(grpc_connection_age_seconds_max=0.1) as (_, channel):
        for _ in range(100):
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]
            await asyncio.sleep(0.005)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def write_certificate(folder: Path, authority: trustme.CA, name: str = "server") -> dict[str, Path]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    paths = {part: folder / f"{name}.{part}" for part in ("certificate", "key", "ca")}
    # The key first and the certificate last, as a reload may look in between.
    issued.private_key_pem.write_to_path(paths["key"])
    issued.cert_chain_pems[0].write_to_path(paths["certificate"])
    authority.cert_pem.write_to_path(paths["ca"])
    return paths


async def test_tls_server_and_channel(tmp_path: Path, authority: trustme.CA) -> None:
    paths = write_certificate(tmp_path, authority)
    async with serving_example(
        tls_certificate_file=paths["certificate"], tls_key_file=paths["key"]
    ) as served:
        async with rpc.channel(
            served.address, token=SERVICE_TOKEN, files=tls.ClientFiles(paths["ca"])
        ) as channel:
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]
        async with rpc.channel(served.address, token=SERVICE_TOKEN) as plaintext:
            assert isinstance(await failure(call(plaintext, "UnaryUnary")), errors.UnavailableError)


async def test_mutual_tls_refuses_clients_without_a_certificate(
    tmp_path: Path, authority: trustme.CA
) -> None:
    server, client = write_certificate(tmp_path, authority), write_certificate(tmp_path, authority, "client")
    files = {
        "tls_certificate_file": server["certificate"],
        "tls_key_file": server["key"],
        "tls_client_ca_file": server["ca"],
    }
    async with serving_example(**files) as served:
        known = tls.ClientFiles(server["ca"], client["certificate"], client["key"])
        async with rpc.channel(served.address, token=SERVICE_TOKEN, files=known) as channel:
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]
        async with rpc.channel(
            served.address, token=SERVICE_TOKEN, files=tls.ClientFiles(server["ca"])
        ) as unknown:
            assert isinstance(await failure(call(unknown, "UnaryUnary")), errors.UnavailableError)


async def test_a_new_certificate_is_used_without_a_restart(tmp_path: Path, authority: trustme.CA) -> None:
    paths = write_certificate(tmp_path, authority)
    async with serving_example(
        tls_certificate_file=paths["certificate"], tls_key_file=paths["key"]
    ) as served:
        other = trustme.CA()
        write_certificate(tmp_path, other)
        async with rpc.channel(
            served.address, token=SERVICE_TOKEN, files=tls.ClientFiles(paths["ca"])
        ) as channel:
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]
        paths["certificate"].write_text("broken")
        async with rpc.channel(
            served.address, token=SERVICE_TOKEN, files=tls.ClientFiles(paths["ca"])
        ) as channel:
            assert await call(channel, "UnaryUnary") == [b"hello:service:"]


async def test_unreadable_certificates_are_one_clear_line(tmp_path: Path, authority: trustme.CA) -> None:
    paths = write_certificate(tmp_path, authority)
    (tmp_path / "not.pem").write_text("hello")
    for certificate, message in (
        (tmp_path / "no", "cannot read"),
        (tmp_path / "not.pem", "is not a PEM file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            async with serving_example(tls_certificate_file=certificate, tls_key_file=paths["key"]):
                pass


async def test_a_client_that_pings_every_half_minute_is_not_sent_away() -> None:
    """The limits are in tens of seconds; what is checked is that the server tolerates more than our channels send."""
    from services.common import channels

    assert rpc._CLIENT_PING_INTERVAL_MS_MIN * 2 <= channels._KEEPALIVE_MS


async def test_grpcurl_lists_services_and_sees_health() -> None:
    async with serving_example() as served:
        answers = []
        for arguments in (["list"], ["-d", json.dumps({"service": SERVICE}), "grpc.health.v1.Health/Check"]):
            options, rest = (arguments[:-1], arguments[-1]) if len(arguments) > 1 else ([], arguments[0])
            command = [GRPCURL, "-plaintext", *options, str(served.address), rest]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            output, _ = await asyncio.wait_for(process.communicate(), 30)
            answers.append(output.decode())
    assert SERVICE in answers[0]
    assert "SERVING" in answers[1]
