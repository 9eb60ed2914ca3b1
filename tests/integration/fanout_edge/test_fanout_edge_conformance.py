"""The edge answers each case of the specifications as they demand, over plaintext and TLS, and others do not notice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame

from execution.fanout.v1 import fanout_service_pb2 as pb
from services.common.h2grpc.messages import prefixed
from tests.integration.fanout_edge import (
    cases_of_frame_definitions,
    cases_of_frames_and_states,
    cases_of_grpc,
    cases_of_messages,
)
from tests.integration.fanout_edge.attacker import PREFACE, connected, hung_up
from tests.integration.fanout_edge.conformance import (
    ACK,
    CASE,
    DATA,
    END_STREAM,
    PING,
    SETTINGS,
    WITNESS,
    Case,
    judge,
    opened,
    raw,
    requested,
)
from tests.integration.fanout_edge.counting_service import UNTIL_DRAINED, Edge, count, counting_edge

WAITING = prefixed(pb.SubscribeRequest(client=UNTIL_DRAINED).SerializeToString())
CASES = [
    *cases_of_frames_and_states.CASES,
    *cases_of_frame_definitions.CASES,
    *cases_of_messages.CASES,
    *cases_of_grpc.CASES,
]


@pytest.fixture(params=["plaintext", "TLS"])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Edge]:
    async with counting_edge(tmp_path if request.param == "TLS" else None) as edge:
        yield edge


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
async def test_each_case_is_answered_as_the_specification_demands(edge: Edge, case: Case) -> None:
    async with edge.channel() as channel, connected(edge) as peer:
        assert await count(channel, 1) == 1
        await peer.send(
            PREFACE, raw(SETTINGS, 0, 0), opened(WITNESS), raw(DATA, END_STREAM, WITNESS, WAITING)
        )
        await peer.until(DataFrame)
        await judge(peer, case)
        assert await count(channel, 2) == 2


@pytest.mark.parametrize(
    "first",
    [raw(PING, 0, 0, b"12345678"), raw(SETTINGS, ACK, 0), requested(), raw(0x20, 0, 0, b"what")],
    ids=["PING", "acknowledgement", "request", "unknown"],
)
async def test_the_first_frame_is_settings_or_the_connection_ends(edge: Edge, first: bytes) -> None:
    """RFC 9113, 3.4."""
    async with connected(edge) as peer:
        await peer.send(PREFACE, first)
        assert (await peer.goaway()).error_code == ErrorCodes.PROTOCOL_ERROR
    async with edge.channel() as channel:
        assert await count(channel, 2) == 2


async def test_a_preface_may_come_byte_by_byte_and_its_settings_with_the_first_request(edge: Edge) -> None:
    async with connected(edge) as peer:
        for position in range(len(PREFACE)):
            await peer.send(PREFACE[position : position + 1])
        await peer.send(raw(SETTINGS, 0, 0) + requested())
        assert (await peer.answer(CASE)).status == "0"


@pytest.mark.parametrize("broken_at", [0, 10, 23])
async def test_another_preface_is_hung_up_on(edge: Edge, broken_at: int) -> None:
    async with connected(edge) as peer:
        await peer.send(PREFACE[:broken_at] + b"?" + PREFACE[broken_at + 1 :], raw(SETTINGS, 0, 0))
        await hung_up(peer.reader)


async def test_a_connection_whose_error_was_told_is_closed(edge: Edge) -> None:
    """RFC 9113, 5.4.1."""
    async with connected(edge) as peer:
        await peer.send(PREFACE, raw(SETTINGS, 0, 0), requested(), raw(PING, 0, 0, b"short"), requested(5))
        assert (await peer.goaway()).error_code == ErrorCodes.FRAME_SIZE_ERROR
        await hung_up(peer.reader)
    assert 5 not in peer.answers


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.title for case in CASES}) == len(CASES)
