"""The admin port over real HTTP."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from services.common import admin, tasks
from services.common.errors import ConfigurationError
from services.common.settings import Address

LOOPBACK = Address("127.0.0.1", 0)


def fetch(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://{host}:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


async def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    return await asyncio.to_thread(fetch, port, path, method, host)


async def test_metrics_are_prometheus_text() -> None:
    readiness = admin.Readiness([admin.Check("database", lambda: False, gates=False)])
    async with admin.serving(LOOPBACK, readiness) as served:
        status, body = await get(served.port, "/metrics")
    assert status == 200
    assert b"# TYPE event_loop_lag_seconds histogram" in body
    assert b'service_check_up{check="database"} 0.0' in body


async def test_requests_that_never_end_do_not_keep_others_from_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte now and then would hold a thread, and with all of them the probes that decide over the process."""
    monkeypatch.setattr(admin, "_REQUEST_SECONDS", 0.3)
    async with admin.serving(LOOPBACK) as served:
        slow = [
            await asyncio.open_connection("127.0.0.1", served.port) for _ in range(admin._CONNECTIONS_MAX)
        ]

        async def dribble(writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        async with tasks.background(*(dribble(writer) for _, writer in slow)):
            await asyncio.sleep(0.1)
            assert (await get(served.port, "/health"))[0] == 200
        for _, writer in slow:
            writer.close()


async def test_an_answer_may_take_longer_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers that hang are asked one after the other, and the probe must hear of it."""
    monkeypatch.setattr(admin, "_REQUEST_SECONDS", 0.1)

    def slowly() -> bool:
        time.sleep(0.3)
        return False

    async with admin.serving(LOOPBACK, admin.Readiness([admin.Check("slow", slowly)])) as served:
        assert (await get(served.port, "/ready"))[0] == 503


async def test_ready_names_each_check_and_only_gating_ones_count() -> None:
    state = {"grpc": True, "database": True}
    readiness = admin.Readiness([admin.Check("grpc", lambda: state["grpc"])])
    readiness.add("database", lambda: state["database"], gates=False)
    async with admin.serving(LOOPBACK, readiness) as served:
        assert await ready(served) == (200, {"status": "ready", "checks": {"grpc": True, "database": True}})
        state["database"] = False
        assert await ready(served) == (200, {"status": "ready", "checks": {"grpc": True, "database": False}})
        state["grpc"] = False
        assert await ready(served) == (
            503,
            {"status": "not ready", "checks": {"grpc": False, "database": False}},
        )


async def ready(served: admin.Admin) -> tuple[int, object]:
    status, body = await get(served.port, "/ready")
    return status, json.loads(body)


async def test_a_check_that_fails_counts_as_not_fine() -> None:
    def broken() -> bool:
        raise KeyError("x")

    async with admin.serving(LOOPBACK, admin.Readiness([admin.Check("broken", broken)])) as served:
        assert await ready(served) == (503, {"status": "not ready", "checks": {"broken": False}})


async def test_health_tells_a_stuck_event_loop_and_one_that_lives_again() -> None:
    async with admin.serving(LOOPBACK, tick_age_seconds_max=0.8) as served:
        await until_health_is(served.port, 200)
        told = threading.Event()

        def ask() -> None:
            while fetch(served.port, "/health")[0] != 503:
                time.sleep(0.05)
            told.set()

        asking = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.sleep(0.1)
        assert told.wait(60), "the event loop stands still here, which /health must tell"
        await asking
        await until_health_is(served.port, 200)


async def until_health_is(port: int, status: int) -> None:
    async with asyncio.timeout(60):
        while (await get(port, "/health"))[0] != status:  # noqa: ASYNC110  # a port has no event
            await asyncio.sleep(0.05)


async def test_other_paths_and_methods_are_refused() -> None:
    async with admin.serving(LOOPBACK) as served:
        assert (await get(served.port, "/"))[0] == 404
        assert (await get(served.port, "/metrics", "POST"))[0] == 405


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with admin.serving(LOOPBACK) as served:
        with pytest.raises(ConfigurationError) as caught:
            async with admin.serving(Address("127.0.0.1", served.port)):
                pass
    assert str(caught.value).startswith(f"ADMIN_BIND_ADDRESS: cannot listen on 127.0.0.1:{served.port}: ")


async def test_a_host_that_is_not_ours_is_one_clear_line() -> None:
    with pytest.raises(ConfigurationError, match=r"ADMIN_BIND_ADDRESS: cannot listen on 192\.0\.2\.1:0"):
        async with admin.serving(Address("192.0.2.1", 0)):
            pass


async def test_the_port_listens_on_ipv6_too() -> None:
    try:
        async with admin.serving(Address("::1", 0)) as served:
            assert (await get(served.port, "/health", host="[::1]"))[0] == 200
    except ConfigurationError:
        pytest.skip("this machine has no IPv6 loopback")


async def test_silent_connections_do_not_stop_others_and_are_bounded() -> None:
    """Whoever asks is answered, however many say nothing; for them those end that have been silent for longest."""
    async with admin.serving(LOOPBACK) as served:
        silent = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(60)]
        try:
            for _ in range(10):
                assert (await get(served.port, "/health"))[0] == 200
            longest = silent[0]
            longest.settimeout(5)
            assert await asyncio.to_thread(longest.recv, 1) == b""
        finally:
            for connection in silent:
                connection.close()
        await answers_again(served.port)


async def test_without_a_free_descriptor_the_port_rests_and_answers_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection that cannot be accepted stays ready to be, and a thread that tried on would take a core."""
    tries = 0
    accept = admin._Server.get_request

    def counted(server: admin._Server) -> object:
        nonlocal tries
        tries += 1
        return accept(server)

    monkeypatch.setattr(admin._Server, "get_request", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with admin.serving(LOOPBACK) as served:
        with socket.socket() as waiting:
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
            try:
                waiting.connect(("127.0.0.1", served.port))
                await asyncio.sleep(0.5)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert 1 <= tries <= 20
        await answers_again(served.port)


async def answers_again(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                status, _ = await get(port, "/health")
            except OSError:
                await asyncio.sleep(0.05)
                continue
            assert status == 200
            return
