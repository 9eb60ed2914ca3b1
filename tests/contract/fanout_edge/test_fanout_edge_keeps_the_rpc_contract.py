"""The HTTP/2 edge keeps every promise of `services.common.rpc`: its contract tests, run against the edge."""

from __future__ import annotations

import asyncio

import pytest

from services.common import h2grpc, rpc
from tests.contract.common import example_service
from tests.contract.common.example_service import SERVICE, calling_example
from tests.contract.common.test_common_rpc_calls import *  # noqa: F403  # the tests are what is wanted
from tests.contract.common.test_common_rpc_calls import until
from tests.contract.common.test_common_rpc_errors import *  # noqa: F403 - all of its tests, here again
from tests.contract.common.test_common_rpc_server import *  # noqa: F403 - all of its tests, here again


@pytest.fixture(autouse=True)
def _served_by_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "serving", h2grpc.serving)
    monkeypatch.setattr(example_service, "ServiceSettings", h2grpc.Http2Settings)


# grpc.aio's client tells nobody of a cancellation that comes while it begins a call; this server is so quick to start
# the handler that the shared test's cancellation would come then. So the reader first has an answer.
@pytest.mark.parametrize("kind", ["UnaryStream", "Writing"])
async def test_a_caller_that_goes_cancels_its_handler(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with calling_example() as (served, channel):
        served.example.hold = asyncio.Event()
        stream = channel.unary_stream(f"/{SERVICE}/{kind}")(b"")
        assert await stream.read() == b"first"
        await until(lambda: "held" in served.example.events)
        stream.cancel()
        await until(lambda: "cancelled" in served.example.events)
    assert [record for record in caplog.records if record.exc_info] == []
