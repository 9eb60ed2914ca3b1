"""The examples made of stock parts, betterproto2 on grpclib and TypeScript on @grpc/grpc-js, keep what they promise.

Against the real fan-out where it can show the case, and against a server that misbehaves where it cannot.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
import trustme

from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2 as license_pb
from mesh import ports
from tests.integration.clients import scripted_server as scripted
from tests.integration.clients.example_programs import running
from tests.integration.fanout.fanout_service import Fanout, fanout_running, fanout_settings
from tests.integration.fanout.stand_in_ledger import StandInLedger
from tests.integration.fanout.written_log import WrittenLog
from tests.waiting import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["betterproto", "typescript"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def positions(tmp_path: Path) -> Path:
    return tmp_path / "positions.json"


def places(first: int, last: int) -> list[str]:
    return [f"1/1/{sequence}" for sequence in range(first, last + 1)]


async def test_it_goes_on_where_its_file_ends(
    program: str, positions: Path, fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog
) -> None:
    subscribers_ledger.add_user("token", 1)
    await log.signals(1, 3)
    start = ("--plaintext", "--start", "beginning", "--count", "3")
    async with running(program, fanout.target, positions, *start) as first:
        assert await first.ended() == 0
    assert first.lines[0] == "1/1/1 after 1/0: OPEN BUY EURUSD 0.1 lots at 1.0714, position 1"
    assert first.signals == places(1, 3)
    kept = json.loads(positions.read_text())["1"]
    assert (int(kept["epoch"]), int(kept["sequence"])) == (1, 3)

    await log.signals(1, 3)
    async with running(program, fanout.target, positions, *start) as second:
        assert await second.ended() == 0
    assert second.signals == places(4, 6)


async def test_it_acknowledges(
    program: str, positions: Path, fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog
) -> None:
    user = subscribers_ledger.add_user("token", 1)
    await log.signals(1, 7)
    async with running(program, fanout.target, positions, "--plaintext", "--start", "beginning") as example:
        await example.until("1/1/7 after")
        while 7 not in {
            one.acknowledged.sequence for one in subscribers_ledger.recorded.get((user.user_id, 1), [])
        }:
            await subscribers_ledger.next_record()


async def test_it_reads_over_tls(
    program: str,
    positions: Path,
    tmp_path: Path,
    redis_url: str,
    subscribers_ledger: StandInLedger,
    log: WrittenLog,
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = {"tls_certificate_file": tmp_path / "server.pem", "tls_key_file": tmp_path / "server.key"}
    certificate.cert_chain_pems[0].write_to_path(files["tls_certificate_file"])
    certificate.private_key_pem.write_to_path(files["tls_key_file"])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    subscribers_ledger.add_user("token", 1)
    await log.signals(1, 5)
    settings = fanout_settings(redis_url, subscribers_ledger, **files)
    async with fanout_running(settings, ready=False) as fanout:
        address = f"localhost:{fanout.running.port}"
        start = ("--ca-file", tmp_path / "ca.pem", "--start", "beginning", "--count", 5)
        async with running(program, address, positions, *start) as example:
            assert await example.ended() == 0
    assert example.signals == places(1, 5)


async def test_it_comes_back_when_the_server_is_replaced(
    program: str, positions: Path, redis_url: str, subscribers_ledger: StandInLedger, log: WrittenLog
) -> None:
    subscribers_ledger.add_user("token", 1)
    await log.signals(1, 3)
    with ports.port_block() as block:
        address = f"127.0.0.1:{block.take()}"
        settings = fanout_settings(redis_url, subscribers_ledger, grpc_bind_address=address)
        async with fanout_running(settings):
            example = running(program, address, positions, "--plaintext", "--start", "beginning")
            following = await example.__aenter__()
            await following.until("1/1/3 after")
        await following.until("drain: the server asks to come back in")
        await following.until("stream ended: UNAVAILABLE the server is stopping")
        await log.signals(1, 2)
        async with fanout_running(settings):
            await log.signals(1, 2)
            await following.until("1/1/7 after")
            await example.__aexit__(None, None, None)
    assert following.signals == places(1, 7)
    assert following.process.returncode == 0


async def test_a_gap_leads_to_a_full_sync(
    program: str, positions: Path, fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog
) -> None:
    subscribers_ledger.add_user("token", 1)
    await log.signals(1, 2)
    async with running(program, fanout.target, positions, "--plaintext", "--start", "beginning") as example:
        await example.until("1/1/2 after")
        await log.gap(1, 3)
        await example.until("gap of master 1: 1/3 to 1/5 will not come (REJECTED)")
        await log.snapshot(1)
        await example.until("snapshot of master 1 as of 1/5: 0 positions, 0 orders")
        await log.signals(1, 2)
        await example.until("1/1/7 after")
    assert example.signals == [*places(1, 2), *places(6, 7)]


async def test_it_hears_of_pauses_and_leaves_when_its_subscription_ends(
    program: str, positions: Path, fanout: Fanout, subscribers_ledger: StandInLedger, log: WrittenLog
) -> None:
    user = subscribers_ledger.add_user("token", 1)
    await log.signals(1, 1)
    async with running(program, fanout.target, positions, "--plaintext", "--start", "beginning") as example:
        await example.until("1/1/1 after")
        await subscribers_ledger.pause(user, 1, license_pb.PAUSE_SCOPE_ALL)
        await example.until("state of master 1: PAUSED_ALL")
        await log.signals(1, 1)
        await example.until("gap of master 1: 1/2 to 1/2 will not come (WITHHELD)")
        await subscribers_ledger.cancel(user, 1)
        await example.until("state of master 1: CANCELLED")
        assert await example.ended() in (0, 1)
    assert example.signals == places(1, 1)


async def test_an_unknown_license_is_final(
    program: str,
    positions: Path,
    fanout: Fanout,
    subscribers_ledger: StandInLedger,
) -> None:
    async with running(program, fanout.target, positions, "--plaintext", token="nobody's") as example:
        assert await example.ended() == 1
    assert example.with_words("stream ended: UNAUTHENTICATED")


@pytest.mark.parametrize("content", ["garbage", '{"1": {"epoch": 1}}', '{"1": "1/7"}'])
async def test_a_file_that_holds_no_positions_is_told_in_one_line(
    program: str, positions: Path, content: str
) -> None:
    positions.write_text(content)
    async with running(program, "127.0.0.1:1", positions, "--plaintext") as example:
        assert await example.ended() == 1
    assert [line for line in example.lines if line] == example.with_words(positions.name, "remove it")
    assert positions.read_text() == content


async def test_a_license_may_come_with_its_files_line_end(program: str, positions: Path) -> None:
    async with (
        scripted.serving(scripted.says(scripted.signals(1))) as server,
        running(program, server.address, positions, "--plaintext", "--start", "beginning", token="token\n"),
    ):
        await until(lambda: server.tokens == ["Bearer token"])


async def test_what_came_before_is_passed_over_and_a_hole_is_asked_for(program: str, positions: Path) -> None:
    async with scripted.serving(
        scripted.says(scripted.signals(1, 2, 3), scripted.signals(2, 3, 4), scripted.signals(7, 8)),
        scripted.says(scripted.signals(5, 6, 7, 8)),
    ) as server:
        start = ("--plaintext", "--start", "beginning", "--count", 8)
        async with running(program, server.address, positions, *start) as example:
            assert await example.ended() == 0
    assert example.signals == places(1, 8)
    assert example.with_words("hole in the stream of master 1: 1/4 is held, but 1/6 was sent")
    asked = server.requests[1].masters[0].after
    assert (asked.epoch, asked.sequence) == (1, 4)
    assert set(server.tokens) == {"Bearer token"}


async def test_what_is_said_about_masters_that_were_not_asked_for_is_passed_over(
    program: str, positions: Path
) -> None:
    strangers = scripted.snapshot(5)
    strangers.snapshot.snapshot.master_id = 7
    change = pb.StateChange(master_id=1, state=pb.SUBSCRIPTION_STATE_CANCELLED)
    cancelled = pb.SubscribeResponse(state_change=change)
    script = scripted.says(strangers, scripted.signals(1), cancelled, then=grpc.StatusCode.UNAVAILABLE)
    async with (
        scripted.serving(script) as server,
        running(program, server.address, positions, "--plaintext", "--start", "beginning") as client,
    ):
        assert await client.ended() == 0
    assert client.signals == places(1, 1)
    assert len(server.requests) == 1


async def asked_and_told(
    program: str, positions: Path, *scripts: scripted.Script
) -> tuple[list[str | None], list[str]]:
    """How a client that wants two signals from the beginning on begins each stream, and the signals that it prints."""
    async with scripted.serving(*scripts) as server:
        start = ("--plaintext", "--start", "beginning", "--count", 2)
        async with running(program, server.address, positions, *start) as example:
            assert await example.ended() == 0
    return [request.masters[0].WhichOneof("start") for request in server.requests], example.signals


async def test_a_hole_that_stays_leads_to_a_full_sync(program: str, positions: Path) -> None:
    kinds, signals = await asked_and_told(
        program,
        positions,
        scripted.says(scripted.signals(1), scripted.signals(4)),
        scripted.says(scripted.signals(4)),
        scripted.says(scripted.snapshot(4), scripted.signals(5)),
    )
    assert kinds == ["after", "after", "from_snapshot"]
    assert signals == ["1/1/1", "1/1/5"]


async def test_a_server_that_says_that_something_is_missing_is_asked_for_a_full_sync(
    program: str, positions: Path
) -> None:
    """Though no gap was seen: an earlier stream may have told it."""
    kinds, signals = await asked_and_told(
        program,
        positions,
        scripted.says(scripted.signals(1), scripted.state(pb.SUBSCRIPTION_STATE_DEGRADED_GAP)),
        scripted.says(scripted.snapshot(1), scripted.signals(2)),
    )
    assert kinds == ["after", "from_snapshot"]
    assert signals == places(1, 2)


@pytest.mark.parametrize(("stored", "kind"), [(50, "from_snapshot"), (None, "after")])
async def test_a_position_that_is_too_old_leads_to_what_there_is_instead(
    program: str, positions: Path, stored: int | None, kind: str
) -> None:
    start: dict[str, object] = {"epoch": 1, "sequence": 5}
    key = "misses_something" if program == "betterproto" else "missesSomething"
    positions.write_text(json.dumps({"1": {**start, key: False}}))
    responses = [scripted.snapshot(50), scripted.signals(51)] if stored else [scripted.signals(41)]
    async with (
        scripted.serving(scripted.out_of_range(40, stored), scripted.says(*responses)) as server,
        running(program, server.address, positions, "--plaintext", "--count", 1) as example,
    ):
        assert await example.ended() == 0
    assert example.with_words("stream ended: OUT_OF_RANGE gone")
    asked = server.requests[1].masters[0]
    assert asked.WhichOneof("start") == kind
    assert example.signals == (["1/1/51"] if stored else ["1/1/41"])


async def test_it_backs_off_and_comes_back_after_errors(program: str, positions: Path) -> None:
    async with scripted.serving(
        scripted.says(scripted.signals(1), then=grpc.StatusCode.RESOURCE_EXHAUSTED, details="SLOW_READER"),
        scripted.says(then=grpc.StatusCode.INTERNAL, details="told to"),
        scripted.says(scripted.signals(2), pb.SubscribeResponse(), scripted.signals(3)),
    ) as server:
        start = ("--plaintext", "--start", "beginning", "--count", 3)
        async with running(program, server.address, positions, *start) as example:
            assert await example.ended() == 0
    assert example.signals == places(1, 3)
    assert example.with_words("stream ended: RESOURCE_EXHAUSTED SLOW_READER")
    assert example.with_words("stream ended: INTERNAL told to")


async def test_a_long_silence_is_taken_for_a_dead_server(tmp_path: Path) -> None:
    """Both at once, as each waits for ten seconds."""
    programs = ("betterproto", "typescript")
    silent = scripted.says(scripted.signals(1))
    async with scripted.serving(silent, silent, scripted.says(scripted.signals(2))) as server:
        start = ("--plaintext", "--start", "beginning", "--count", 2)

        async def follow(program: str) -> list[str]:
            async with running(program, server.address, tmp_path / program, *start) as example:
                assert await example.ended() == 0
            return example.signals

        followed = [asyncio.create_task(follow(program)) for program in programs]
        assert [await one for one in followed] == [places(1, 2)] * len(programs)
    assert len(server.requests) == 2 * len(programs)
