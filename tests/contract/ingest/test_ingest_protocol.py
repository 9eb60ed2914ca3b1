"""docs/protocol.md is true: its vectors byte by byte, its codes and its frames completely."""

from __future__ import annotations

import re

import pytest

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.frames import FrameDecoder, ack_payload, encode_frame
from services.ingest.domain.mac import MacKey, login_mac, session_keys
from services.ingest.domain.outbox import CLOSING
from services.ingest.domain.rules import problem_of, snapshot_problem
from services.ingest.domain.values import LogHead
from tests.contract.ingest import vectors
from tests.unit.ingest.dialogue import Dialogue, only_ack
from tests.unit.ingest.signing import Credentials, Keys

DOCUMENTED, EXPECTED = vectors.documented(), vectors.expected()
TEXT = vectors.DOCUMENT.read_text(encoding="utf-8")
_CODE_ROW = re.compile(
    r"^\| (?P<number>\d+) (?P<name>[A-Z_]+) \|.*\| (?P<closes>yes|no) \| .+ \|$", re.MULTILINE
)
_FRAME_ROW = re.compile(r"^\|\s*(\d*)\s*\|\s*(\w*)\s*\|\s*\| (\d+) \| (\w+) \|$", re.MULTILINE)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_vector_is_documented_as_it_is(name: str):
    assert DOCUMENTED[name].hex(" ") == EXPECTED[name].hex(" ")


def test_nothing_else_is_documented():
    assert set(DOCUMENTED) == set(EXPECTED)


def test_every_code_is_documented_with_what_it_does():
    rows = {int(row["number"]): row for row in _CODE_ROW.finditer(TEXT)}
    assert {number: row["name"] for number, row in rows.items()} == {
        code: name.removeprefix("REJECT_CODE_") for name, code in pb.RejectCode.items() if code
    }
    assert {number for number, row in rows.items() if row["closes"] == "yes"} == CLOSING


def test_every_frame_is_documented_with_its_number():
    rows = _FRAME_ROW.findall(TEXT)
    client = {int(row[0]): row[1] for row in rows if row[0]}
    server = {int(row[2]): row[3] for row in rows}
    assert client == {f.number: f.message_type.name for f in pb.ClientFrame.DESCRIPTOR.fields}
    assert server == {f.number: f.message_type.name for f in pb.ServerFrame.DESCRIPTOR.fields}


@pytest.mark.parametrize("row", [*vectors.message_rows(), *vectors.enum_rows()])
def test_every_message_and_enumeration_is_documented_as_it_is(row: str):
    assert row in TEXT.splitlines()


def test_the_service_makes_the_same_macs():
    client, server, body = vectors.CLIENT_NONCE, vectors.SERVER_NONCE, DOCUMENTED["login-body"]
    assert login_mac(vectors.SECRET, client, server, body) == DOCUMENTED["login-mac"]
    keys = session_keys(vectors.SECRET, client, server)
    for key, name in ((keys.signals, "signals"), (keys.snapshot, "snapshot"), (keys.gap_fill, "gapfill")):
        assert key.fits(DOCUMENTED[f"{name}-body"], DOCUMENTED[f"{name}-mac"])
    for length in (20, 64, 131):
        secret = b"\xaa" * length
        assert login_mac(secret, client, server, body) == DOCUMENTED[f"secret-{length}-login-mac"]
        key = DOCUMENTED[f"secret-{length}-key-session"]
        assert session_keys(secret, client, server).signals.mac(b"x") == MacKey(key).mac(b"x")


def test_the_documented_session_runs_as_documented():
    """The client's frames from the document, fed to the real machine under the documented challenge."""
    who = Credentials(vectors.MASTER_ID, vectors.SECRET, vectors.KEY_ID, vectors.LICENSE_TOKEN)
    dialogue = Dialogue(who=who, now_us=vectors.TIME_US)
    dialogue.session.handshake._challenge = vectors.SERVER_NONCE
    dialogue.keys = Keys(who.secret, vectors.CLIENT_NONCE, vectors.SERVER_NONCE)

    def feed(name: str) -> list[bytes]:
        decoder = FrameDecoder()
        decoder.receive_data(DOCUMENTED[name])
        payload = decoder.next_frame()
        assert payload is not None
        dialogue.session.receive_payload(payload, dialogue.now_us, dialogue.now_seconds)
        return [encode_frame(one) for one in dialogue.session.data_to_send(dialogue.now_seconds)]

    assert feed("hello") == [DOCUMENTED["challenge"]]
    assert feed("login") == []
    dialogue.authorise()
    dialogue.open_log(LogHead(1, 7, 1_800_000_000_123))
    assert feed("signals") == []
    assert feed("snapshot") == []
    (command,) = dialogue.session.take_commands()
    assert only_ack(dialogue.append()).sequence == 9
    dialogue.session.snapshot_stored(command, True)
    (frame,) = dialogue.session.data_to_send(dialogue.now_seconds)
    assert encode_frame(frame) == DOCUMENTED["ack-of-snapshot"]
    assert feed("gapfill") == []
    assert only_ack(dialogue.append()).sequence == 11
    assert feed("ping") == [DOCUMENTED["pong"]]
    assert [pb.ServerFrame.FromString(one[4:]).WhichOneof("frame") for one in feed("bye")] == ["bye"]


def test_the_ack_made_by_hand_is_the_documented_one():
    assert encode_frame(ack_payload(9, 1, 4_096)) == DOCUMENTED["ack"]


def test_the_documented_signals_and_snapshot_are_acceptable():
    assert [problem_of(signal) for signal in vectors.signals()] == [None, None]
    assert snapshot_problem(vectors.snapshot()) is None
