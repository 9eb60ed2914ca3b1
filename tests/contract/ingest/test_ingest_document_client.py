"""docs/protocol.md is enough: a client written from it alone makes its vectors and holds a session."""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path

import pytest

from services.common import log
from services.common.stream import Redis
from services.ingest.app import Running
from tests.contract.ingest import document_client as client
from tests.contract.ingest import vectors
from tests.contract.ingest.document_client import DocumentClient
from tests.integration.ingest.front_door import read_log, signals_in
from tests.integration.ingest.stand_in_ledger import StandInLedger
from tests.unit.ingest.signing import Credentials

DOCUMENTED = vectors.documented()
GAP, CONFLICT = 9, 10
MASTER_LOST = 2


def test_it_uses_nothing_but_the_standard_library_and_no_hmac():
    tree = ast.parse(Path(client.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or ".")
    assert imported <= sys.stdlib_module_names
    assert "hmac" not in imported


def documented_client(secret: bytes = vectors.SECRET) -> DocumentClient:
    made = DocumentClient(vectors.MASTER_ID, vectors.KEY_ID, secret, vectors.LICENSE_TOKEN)
    made.nonce = vectors.CLIENT_NONCE
    return made


def test_it_makes_every_frame_of_the_document_byte_by_byte():
    one, at_us = documented_client(), vectors.TIME_US
    assert one.hello("example 1.0") == DOCUMENTED["hello"]
    assert one.login(vectors.SERVER_NONCE, 1, 7) == DOCUMENTED["login"]
    assert one.session_key == DOCUMENTED["key-session"]
    opened = client.signal(
        *(client.OPEN, 1_001, at_us),
        side=client.BUY,
        volume_e8=10_000_000,
        price_e8=107_140_000,
        stop_e8=106_900_000,
        profit_e8=107_500_000,
    )
    closed = client.signal(client.CLOSE, 1_000, at_us + 500, price_e8=107_150_000)
    assert one.signals(8, [opened, closed], at_us + 1_000) == DOCUMENTED["signals"]
    assert one.gap_fill(10, 11, 1, "stale") == DOCUMENTED["gapfill"]
    position = client.open_position(1_001, 8, at_us)
    assert one.snapshot(9, at_us, [position], "EUR") == DOCUMENTED["snapshot"]
    assert client.framed(client.PING, client.message((1, 1))) == DOCUMENTED["ping"]
    assert client.framed(client.BYE, b"") == DOCUMENTED["bye"]


@pytest.mark.parametrize("length", [20, 64, 131])
def test_it_signs_with_keys_of_each_length(length: int):
    one = documented_client(b"\xaa" * length)
    login = one.login(vectors.SERVER_NONCE, 1, 7)
    assert login.endswith(DOCUMENTED[f"secret-{length}-login-mac"])
    assert one.session_key == DOCUMENTED[f"secret-{length}-key-session"]


def test_its_hmac_is_that_of_rfc_4231():
    short = client.hmac_sha256(b"\x0b" * 20, b"Hi There").hex()
    assert short == "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
    text = b"Test Using Larger Than Block-Size Key - Hash Key First"
    long = client.hmac_sha256(b"\xaa" * 131, text).hex()
    assert long == "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"


def test_it_reads_every_frame_of_the_server_in_the_document():
    def content(name: str) -> tuple[int, client.Fields]:
        ((kind, (data, *_)),) = client.parsed(DOCUMENTED[name][4:]).items()
        return kind, client.parsed(data)

    kind, challenge = content("challenge")
    assert (kind, challenge[1], challenge[2]) == (
        client.CHALLENGE, [vectors.SERVER_NONCE], [vectors.TIME_US]
    )  # fmt: skip
    kind, welcome = content("welcome")
    assert kind == client.WELCOME
    assert client.parsed(welcome[2][0]) == {1: [1], 2: [7]}
    assert content("ack") == (client.ACK, {1: [9], 2: [1], 3: [4_096]})
    kind, reject = content("reject")
    assert (kind, reject[2], reject[6]) == (client.REJECT, [12], [b"price_e8"])
    assert content("drain") == (client.DRAIN, {1: [1_500]})


@pytest.mark.parametrize("length", [20, 32, 64, 131])
async def test_it_holds_a_session(ingest: Running, ledger: StandInLedger, log_client: Redis, length: int):
    who = ledger.add(Credentials(secret=bytes(range(100, 100 + length))))
    await asyncio.to_thread(hold_a_session, ingest.port, who)
    assert list(signals_in(await read_log(log_client))) == [1, 2, 3, 6]
    snapshot = await log.read_snapshot(log_client, 1)
    assert [one.position_id for one in snapshot.positions] == [501]


def hold_a_session(port: int, who: Credentials) -> None:
    """Signals, a duplicate, a gap that is declared, a snapshot, a ping, goodbye; then a conflict."""
    one = DocumentClient(who.master_id, who.key_id, who.secret, who.license_token)
    one.connect("127.0.0.1", port)
    assert one.sequence == 0
    assert client.first(one.welcome, 3) == 4_096
    now_us = one.server_time_us()

    def opened(position_id: int) -> bytes:
        return client.signal(
            *(client.OPEN, position_id, now_us), side=client.BUY, volume_e8=10_000_000, price_e8=107_140_000
        )

    one.send(one.signals(1, [opened(501), opened(502)], now_us))
    one.acknowledged(2)
    one.send(one.signals(1, [opened(501), opened(502)], now_us))
    one.send(one.signals(3, [client.signal(client.CLOSE, 502, now_us)], now_us))
    one.acknowledged(3)
    last = [opened(503)]
    one.send(one.signals(6, last, now_us))
    kind, reject = one.receive()
    while kind == client.ACK:
        kind, reject = one.receive()
    assert (kind, client.first(reject, 2), client.first(reject, 4)) == (client.REJECT, GAP, 4)
    one.send(one.gap_fill(4, 5, MASTER_LOST))
    one.send(one.signals(6, last, now_us))
    one.acknowledged(6)
    one.send(one.snapshot(3, now_us, [client.open_position(501, 1, now_us)]))
    assert client.first(one.acknowledged(6), 4) == 3
    one.send(client.framed(client.PING, client.message((1, 99))))
    assert client.first(one.expect(client.SERVER_PONG), 1) == 99
    one.close()

    again = DocumentClient(who.master_id, who.key_id, who.secret, who.license_token)
    again.connect("127.0.0.1", port)
    assert again.sequence == 6
    again.send(again.signals(6, [opened(999)], now_us))
    assert client.first(again.expect(client.REJECT), 2) == CONFLICT
    again.socket.close()
