"""What the judge of stock clients makes of what they print: everything that is not just right is named."""

from __future__ import annotations

import json

import pytest

from bench.torture.clients_judge import Documents, Lines, StreamJudge

ENDING = "drain: the server asks to come back in 0.10 s\nstream ended: UNAVAILABLE the server is stopping\n"


def line(sequence: int, *, epoch: int = 1, previous: int | None = None, position: int | None = None) -> str:
    before = sequence - 1 if previous is None else previous
    content = sequence if position is None else position
    return f"1/{epoch}/{sequence} after 1/{before}: OPEN BUY EURUSD 0.1 lots at 1.0714, position {content}\n"


def document(*sequences: int, **more: object) -> str:
    signals = [
        {
            "masterId": "1",
            "epoch": "1",
            "sequence": str(sequence),
            "previousEpoch": "1",
            **({"previousSequence": str(sequence - 1)} if sequence > 1 else {}),
            "signal": {"positionId": str(sequence), "comment": "a } in\ntext"},
        }
        for sequence in sequences
    ]
    return json.dumps({"signals": {"signals": signals}} | more, indent=2) + "\n"


def lines_verdict(text: str, sent: int, *, errors: str = "", piece: int = 1_000) -> list[str]:
    judge = StreamJudge()
    output = Lines(judge)
    for start in range(0, len(text), piece):
        output.take(text[start : start + piece].encode())
    output.take_errors(errors)
    return judge.verdict(sent)


def documents_verdict(text: str, errors: str, sent: int, *, piece: int = 1_000) -> list[str]:
    judge = StreamJudge()
    output = Documents(judge)
    for start in range(0, len(text), piece):
        output.take(text[start : start + piece].encode())
    output.take_errors(errors)
    return judge.verdict(sent)


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_a_stream_that_was_read_whole_is_sound_however_its_output_is_cut(piece: int) -> None:
    text = "".join(map(line, range(1, 6))) + "state of master 1: SYNCED \n" + ENDING
    assert lines_verdict(text, 5, piece=piece) == []


@pytest.mark.parametrize(
    ("text", "sent", "complaint"),
    [
        (line(1) + line(3) + ENDING, 3, "1/3 came where 1/2 was due"),
        (line(1) + line(1) + ENDING, 1, "1/1 came where 1/2 was due"),
        (line(2) + line(1) + ENDING, 2, "1/2 came where 1/1 was due"),
        (line(1) + line(2, epoch=2) + ENDING, 2, "2/2 came where 1/2 was due"),
        (line(1) + line(2, previous=0) + ENDING, 2, "1/2 names 1/0 as the one before"),
        (line(1) + line(2, position=7) + ENDING, 2, "1/2 has the content of 7"),
        (line(1) + ENDING, 2, "1 signals up to 1 came, 2 were sent"),
        (line(1), 1, "it ended with no status, instead of UNAVAILABLE"),
        (
            line(1) + "stream ended: INTERNAL of it\n",
            1,
            "it ended with INTERNAL: of it, instead of UNAVAILABLE",
        ),
        (line(1) + "stream ended: [Errno 111] x\n", 1, "it ended with UNKNOWN: [Errno 111] x, instead"),
        (line(1) + "stream ended: UNAVAILABLE gone\n", 1, "0 Drains came"),
        (line(1) + "gap of master 1: 1/2 to 1/3 will not come (REJECTED)\n" + ENDING, 1, "it says: gap of"),
        (line(1) + "state of master 1: DEGRADED_GAP x\n" + ENDING, 1, "the subscription became DEGRADED_GAP"),
    ],
)
def test_every_difference_is_named(text: str, sent: int, complaint: str) -> None:
    assert any(one.startswith(complaint) for one in lines_verdict(text, sent)), lines_verdict(text, sent)


def test_the_first_end_counts_and_what_a_client_says_when_it_cannot_come_back_does_not() -> None:
    again = "stream ended: INTERNAL no\nstream ended: [Errno 111] Connect call failed\n"
    assert lines_verdict(line(1) + ENDING + again, 1) == []


def test_a_program_that_fails_is_a_difference() -> None:
    verdict = lines_verdict(line(1) + ENDING, 1, errors="Traceback …\nValueError: no")
    assert verdict == ["it wrote to standard error: Traceback …\nValueError: no"]


@pytest.mark.parametrize("piece", [1, 7, 100_000])
@pytest.mark.parametrize(
    "errors",
    ["ERROR:\n  Code: Unavailable\n  Message: the server is stopping\n", '{\n   "code": "unavailable"\n}\n'],
    ids=["grpcurl", "buf"],
)
def test_documents_are_read_however_they_are_cut(errors: str, piece: int) -> None:
    progress = json.dumps({"progress": {"serverTimeUs": "1"}}, indent=2) + "\n"
    drain = json.dumps({"drain": {"reconnectAfter": "0.1s"}}, indent=2) + "\n"
    text = progress + document(1) + document(2, 3, 4) + progress + document(5) + drain
    assert documents_verdict(text, errors, 5, piece=piece) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (document(1) + document(3), "1/3 came where 1/2 was due"),
        (json.dumps({"gap": {"masterId": "1"}}, indent=2) + "\n", "a gap came"),
        ("what is this\n}\n", "it prints b'what is this"),
    ],
)
def test_every_difference_in_documents_is_named(text: str, complaint: str) -> None:
    verdict = documents_verdict(text, "Code: Unavailable", 3)
    assert any(one.startswith(complaint) for one in verdict), verdict


def test_a_tool_without_a_status_is_a_difference() -> None:
    assert "it ended without a status: killed" in documents_verdict(document(1), "killed\n", 1)


def test_a_broken_client_is_not_remembered_without_end() -> None:
    judge = StreamJudge()
    for _ in range(1_000):
        judge.signal(1, 5, (1, 4), 5)
    assert len(judge.verdict(1)) < 30
