"""Each reject code is specified, counted and earned on a live socket; a code that is none of these fails here."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from execution.ingest.v1 import frames_pb2 as pb
from mesh.embedded import redis
from services.ingest.domain.outbox import CLOSING, RETRYABLE
from tests.contract.ingest import vectors
from tests.contract.ingest.provocations import PROVOCATIONS, Scene
from tests.integration.ingest.cuts import rejected
from tests.integration.ingest.stand_in_ledger import StandInLedger

CODES = {name.removeprefix("REJECT_CODE_"): code for name, code in pb.RejectCode.items() if code}
_ROW = re.compile(r"^\| (\d+) ([A-Z_]+) \|.*\| (yes|no) \| .+ \|$", re.MULTILINE)


@pytest.fixture
async def scene(ledger: StandInLedger) -> AsyncIterator[Scene]:
    async with redis() as server:
        yield Scene(server, ledger)


def test_every_code_is_specified_counted_and_earned():
    specified = {row[2] for row in _ROW.finditer(vectors.DOCUMENT.read_text(encoding="utf-8"))}
    counted = {
        sample.labels["code"]
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "signal_rejections_total"
    }
    assert specified == set(CODES)
    assert counted == set(CODES)
    assert set(PROVOCATIONS) == set(CODES)


@pytest.mark.parametrize("name", CODES)
async def test_a_client_that_earns_a_code_gets_it_and_is_counted(scene: Scene, name: str):
    code, before = CODES[name], rejected(name)
    async with PROVOCATIONS[name](scene) as earned:
        assert pb.RejectCode.Name(earned.reject.code) == f"REJECT_CODE_{name}"
        assert earned.reject.message
        assert earned.reject.retryable == (code in RETRYABLE)
        assert rejected(name) == before + 1
        if code in CLOSING:
            assert await earned.master.ended() == []
        else:
            earned.master.send(pb.ClientFrame(ping=pb.Ping(id=7)))
            while (frame := await earned.master.receive()).WhichOneof("frame") == "ack":
                pass
            assert frame.pong.id == 7
