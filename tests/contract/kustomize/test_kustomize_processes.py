"""The pods' commands with the pods' environment, as real processes: do they start, answer their probes and end?"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

Manifest = dict[str, Any]

SERVICES = ["ingest", "fanout", "ledger", "risk"]
NOBODY = "127.0.0.1:1"
STORES_AWAY = {
    "REDIS_URL": f"redis://{NOBODY}/0",
    "DATABASE_URL": f"postgresql://nobody@{NOBODY}/nothing",
}
TOKENS = {
    "SERVICE_TOKEN": "service-token-of-the-tests",
    "OPERATOR_TOKEN": "operator-token-of-the-tests",
    "KEY_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
}
ANSWER_SECONDS_MAX = 30.0
SERVES = re.compile(r"gRPC serves on 127\.0\.0\.1:(\d+)")
SERVING = health_pb2.HealthCheckResponse.SERVING


def _container(manifests: list[Manifest], name: str) -> Manifest:
    (workload,) = [
        manifest
        for manifest in manifests
        if manifest["kind"] in ("Deployment", "Job") and manifest["metadata"]["name"] == name
    ]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return container


def _environment(
    manifests: list[Manifest], container: Manifest, secrets: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """The pod's, but on free loopback ports, with these secrets in files, and with peers that are not there."""
    data = {
        manifest["metadata"]["name"]: manifest["data"]
        for manifest in manifests
        if manifest["kind"] == "ConfigMap"
    }
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= data[source["configMapRef"]["name"]]
    for name in values:
        if name.endswith("_ADDRESS"):
            values[name] = "127.0.0.1:0" if name.endswith("BIND_ADDRESS") else NOBODY
    for variable in container["env"]:
        secret = variable["name"].removesuffix("_FILE")
        (folder / secret).write_text(secrets[secret])
        values[variable["name"]] = str(folder / secret)
    return values


@asynccontextmanager
async def _process(
    container: Manifest, environment: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    program, *arguments = container["command"]
    assert program == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1_048_576,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _grpc_port(process: asyncio.subprocess.Process) -> int:
    """Where the process says that it serves."""
    assert process.stdout is not None
    lines = []
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        async for raw in process.stdout:
            lines.append(raw.decode())
            if match := SERVES.search(lines[-1]):
                return int(match[1])
    pytest.fail("it ended without serving: " + "".join(lines))


async def _ask(channel: grpc.aio.Channel, probe: Manifest) -> int:
    """What the kubelet would hear; NOT_FOUND for a service that is not there raises."""
    request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
    answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_SECONDS_MAX)
    return int(answer.status)


async def _until_serving(channel: grpc.aio.Channel, probe: Manifest) -> None:
    request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
    async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=ANSWER_SECONDS_MAX):
        if answer.status == SERVING:
            return


@pytest.mark.parametrize("name", SERVICES)
async def test_a_pod_whose_stores_and_peers_are_away_is_left_alive(
    render: Callable[[str], list[Manifest]], name: str, tmp_path: Path
) -> None:
    manifests = render("production")
    container = _container(manifests, name)
    environment = _environment(manifests, container, TOKENS | STORES_AWAY, tmp_path)
    async with (
        _process(container, environment) as process,
        grpc.aio.insecure_channel(f"127.0.0.1:{await _grpc_port(process)}") as channel,
    ):
        assert await _ask(channel, container["startupProbe"]) == SERVING
        assert await _ask(channel, container["livenessProbe"]) == SERVING
        await _ask(channel, container["readinessProbe"])


@pytest.mark.parametrize("name", SERVICES)
async def test_a_pod_with_its_stores_becomes_ready_and_ends_when_asked(
    render: Callable[[str], list[Manifest]], name: str, redis_url: str, fresh_database: str, tmp_path: Path
) -> None:
    manifests = render("production")
    container = _container(manifests, name)
    stores = {"REDIS_URL": redis_url, "DATABASE_URL": fresh_database}
    environment = _environment(manifests, container, TOKENS | stores, tmp_path)
    async with _process(container, environment) as process:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await _grpc_port(process)}") as channel:
            await _until_serving(channel, container["readinessProbe"])
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), ANSWER_SECONDS_MAX)
        assert process.returncode == 0, output.decode()


async def test_migration_jobs_bring_an_empty_database_to_what_the_services_expect(
    render: Callable[[str], list[Manifest]], empty_database: str, tmp_path: Path
) -> None:
    manifests = render("production")
    for name in ("migrate-ledger", "migrate-risk", "migrate-ledger", "migrate-risk"):
        container = _container(manifests, name)
        secrets = TOKENS | {"MIGRATION_DATABASE_URL": empty_database}
        async with _process(container, _environment(manifests, container, secrets, tmp_path)) as process:
            output, _ = await asyncio.wait_for(process.communicate(), ANSWER_SECONDS_MAX)
            assert process.returncode == 0, output.decode()
