"""An outbox whose process dies at any byte has everything that was put in, under the sequence that was given."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from ecp_client.disk import FsyncPolicy
from ecp_client.master import Outbox, OutboxSettings
from tests.property.clients.crashing_disk import CrashingDisk, ProcessDiedError

MASTER = 5


def settings() -> OutboxSettings:
    # Far below what the settings allow, so that files are rotated often.
    made = OutboxSettings(fsync=FsyncPolicy.INTERVAL, memory_signals_max=7)
    object.__setattr__(made, "segment_bytes", 300)
    object.__setattr__(made, "bytes_max", 1 << 20)
    return made


@dataclass(frozen=True)
class Model:
    """What an outbox must know: what was put in by sequence, and the acknowledged position."""

    signals: dict[int, bytes] = field(default_factory=dict)
    acknowledged: int = 0
    epoch: int = 0
    last: int = 0

    def put(self, payloads: list[bytes]) -> Model:
        added = dict(enumerate(payloads, self.last + 1))
        return replace(self, signals=self.signals | added, last=self.last + len(payloads))

    def acknowledge(self, sequence: int) -> Model:
        return replace(self, acknowledged=sequence, epoch=max(self.epoch, 1), last=max(self.last, sequence))

    def move(self, sequence: int) -> Model:
        after = self.acknowledged
        by = sequence - after
        moved = {number + by: payload for number, payload in self.signals.items() if number > after}
        last = max(sequence, self.last + by)
        return Model(moved, sequence, self.epoch + 1, last)


Operation = tuple[str, int, int]
STEPS_MAX = 200

operation = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 5), st.integers(0, 90)),
    st.tuples(st.just("acknowledge"), st.integers(0, 6), st.just(0)),
    st.tuples(st.just("move"), st.integers(1, 9), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0), st.just(0)),
)
operations = st.lists(operation, max_size=20)


def next_model(model: Model, operation: Operation, counter: int) -> Model:
    name, amount, size = operation
    if name == "put":
        return model.put([b"%d-%d:" % (counter, index) + b"p" * size for index in range(amount)])
    if name == "acknowledge":
        return model.acknowledge(min(model.last, model.acknowledged + amount))
    if name == "move":
        return model.move(model.last + amount)
    return model


def perform(outbox: Outbox, operation: Operation, before: Model, after: Model) -> None:
    name = operation[0]
    if name == "put":
        first = outbox.put_many([after.signals[number] for number in range(before.last + 1, after.last + 1)])
        assert first == before.last + 1
    elif name == "acknowledge":
        outbox.acknowledge(after.epoch, after.acknowledged)
    elif name == "move":
        outbox.move(before.acknowledged, after.epoch, after.acknowledged)


def run(folder: Path, wanted: list[Operation]) -> Model:
    """Performs operations; returns what the outbox must know then."""
    model = Model()
    outbox = Outbox(folder, MASTER, settings())
    for counter, operation in enumerate(wanted):
        after = next_model(model, operation, counter)
        if operation[0] == "reopen":
            outbox.close()
            outbox = Outbox(folder, MASTER, settings())
        perform(outbox, operation, model, after)
        model = after
    outbox.close()
    return model


def survives(folder: Path, operation: Operation, before: Model, after: Model, disk: CrashingDisk) -> bool:
    """Whether the process lived through the operation. What is left must agree with the models either way."""
    survived = True
    with disk.running():
        try:
            perform(Outbox(folder, MASTER, settings()), operation, before, after)
        except ProcessDiedError:
            survived = False
    with Outbox(folder, MASTER, settings()) as outbox:
        assert outbox.damage == []
        # Acknowledgements are written now and then: the server tells the rest.
        assert agrees(outbox, after if survived and operation[0] != "acknowledge" else before, after)
        last = outbox.last_sequence
        assert outbox.put(b"next") == last + 1
    with Outbox(folder, MASTER, settings()) as outbox:
        assert outbox.damage == []
        assert outbox.read(last + 1, 1, 1_000) == [b"next"]
    return survived


def agrees(outbox: Outbox, before: Model, after: Model) -> bool:
    """Whether the outbox is as it was before or after the last operation, or, of a put, somewhere in between."""
    is_after = (outbox.epoch, outbox.acknowledged) == (after.epoch, after.acknowledged)
    model = after if is_after else before
    assert (outbox.epoch, outbox.acknowledged) == (model.epoch, model.acknowledged)
    read = {
        number: payload
        for number in range(outbox.acknowledged + 1, outbox.last_sequence + 1)
        for payload in outbox.read(number, 1, 1_000)
    }
    pending = {number: one for number, one in model.signals.items() if number > model.acknowledged}
    surely = {
        number: one
        for number, one in pending.items()
        if number in before.signals or after.epoch != before.epoch
    }
    return surely.items() <= read.items() <= pending.items() and outbox.last_sequence <= model.last


@example(
    wanted=[("put", 1, 0), ("put", 1, 0), ("put", 3, 64), ("put", 1, 0), ("acknowledge", 0, 0)],
    last=("acknowledge", 5, 0),
    torn=0.0,
)
@given(wanted=operations, last=operation, torn=st.floats(0, 1))
def test_a_crash_at_any_step_loses_and_doubles_nothing(
    wanted: list[Operation], last: Operation, torn: float
) -> None:
    with tempfile.TemporaryDirectory() as name:
        before = run(Path(name, "before"), wanted)
        after = next_model(before, last, len(wanted))
        for steps in range(STEPS_MAX):
            folder = Path(name, str(steps))
            shutil.copytree(Path(name, "before"), folder)
            if survives(folder, last, before, after, CrashingDisk(steps, torn)):
                return
        raise AssertionError("the operation never ended")


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=30),
    position=st.integers(0, 1 << 20),
    flip=st.integers(1, 255),
)
def test_a_damaged_byte_never_gives_a_wrong_signal(payloads: list[bytes], position: int, flip: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Outbox(folder, MASTER, settings()) as outbox:
            for payload in payloads:
                outbox.put(payload)
        paths = sorted(folder.glob("*.segment"))
        path = paths[position % len(paths)]
        data = bytearray(path.read_bytes())
        data[position % len(data)] ^= flip
        path.write_bytes(data)
        with Outbox(folder, MASTER, settings()) as outbox:
            missing = []
            for sequence, payload in enumerate(payloads, 1):
                read = outbox.read(sequence, 1, 1_000)
                assert read in ([payload], [])
                if not read and sequence <= outbox.last_sequence:
                    missing.append(sequence)
                    assert outbox.hole_from(sequence) == sequence
            assert len(missing) <= 1
            assert not missing or outbox.damage
            assert outbox.last_sequence >= len(payloads) - 1
