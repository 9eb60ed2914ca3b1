"""The fuzzer sees what it is there to see: a door that takes unsigned bytes, crashes, or writes other than was sent."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fuzz.mutation import mutate, pieces
from bench.fuzz.seeds import golden
from bench.fuzz.session_target import SessionTarget, ViolationError
from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.intake import Intake
from services.ingest.domain.log_format import RunEncoder
from services.ingest.domain.mac import MacKey

NOW_US = 1_800_000_000_000_000
FRAMES_MAX = 5_000


def run(frames: int = FRAMES_MAX, seed: int = 5) -> SessionTarget:
    target = SessionTarget(Random(seed), NOW_US)
    for _ in range(frames):
        target.step()
    return target


def test_thousands_of_mutated_frames_do_no_harm():
    target = run()
    # Deep enough to be worth something: sessions were opened and signed frames got through.
    assert target.sessions > 100
    assert target.signed_frames_taken > 100


def test_the_same_seed_sends_the_same_bytes():
    assert run(500).last_input == run(500).last_input


@pytest.mark.parametrize(
    ("broken", "attribute", "replacement"),
    [
        pytest.param(MacKey, "fits", lambda self, message, mac: True, id="any MAC fits"),
        pytest.param(
            MacKey, "fits", lambda self, message, mac: self.mac(message)[:1] == mac[:1], id="one byte fits"
        ),
        pytest.param(
            RunEncoder,
            "signals",
            lambda self, first, last, at, body: b"\x0a\x00",
            id="other bytes in the log",
        ),
    ],
)
def test_a_broken_front_door_is_found(
    monkeypatch: pytest.MonkeyPatch, broken: type, attribute: str, replacement: Callable[..., object]
):
    monkeypatch.setattr(broken, attribute, replacement)
    with pytest.raises(ViolationError):
        run()


def test_a_crash_comes_out(monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object) -> None:
        raise RuntimeError("crashed")

    monkeypatch.setattr(Intake, "take_gap_fill", crash)
    with pytest.raises(RuntimeError, match="crashed"):
        run()


@given(st.binary(max_size=300), st.integers(0, 2**32), st.lists(st.binary(max_size=50), max_size=3))
def test_mutations_are_bounded_and_pieces_lose_nothing(data: bytes, seed: int, others: list[bytes]):
    changed = mutate(data, Random(seed), others)
    assert len(changed) <= 70_000
    assert b"".join(pieces(changed, Random(seed))) == changed


def test_the_frames_of_the_specification_are_among_the_seeds():
    kinds = {pb.ClientFrame.FromString(one).WhichOneof("frame") for one in golden()}
    assert {"hello", "login", "signals", "snapshot", "gap_fill", "ping", "bye"} <= kinds
