"""The outbox on a real disk: order, acknowledgements, rotation, bounds, damage, moves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ecp_client.disk import FsyncPolicy
from ecp_client.errors import ClosedError, OutboxError, OutboxFullError, OutboxLockedError, SettingsError
from ecp_client.master import Outbox, OutboxSettings

SMALL = OutboxSettings(fsync=FsyncPolicy.NEVER, segment_bytes=65_535, bytes_max=200_000)


def payload(number: int) -> bytes:
    return b"signal %d " % number + b"x" * 100


def fill(outbox: Outbox, count: int) -> None:
    for _ in range(count):
        outbox.put(payload(outbox.last_sequence + 1))


def everything(outbox: Outbox) -> dict[int, bytes]:
    """All that is pending, by sequence."""
    found: dict[int, bytes] = {}
    sequence = outbox.acknowledged + 1
    while sequence <= outbox.last_sequence:
        read = outbox.read(sequence, 100, 10_000)
        found.update(enumerate(read, sequence))
        sequence += len(read) or 1
    return found


def expected(first: int, last: int) -> dict[int, bytes]:
    return {number: payload(number) for number in range(first, last + 1)}


def test_sequences_rise_from_one(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.put(payload(1)) == 1
        assert outbox.put_many([payload(2), payload(3)]) == 2
        assert outbox.last_sequence == outbox.pending == 3
        assert everything(outbox) == expected(1, 3)


@pytest.mark.parametrize("policy", list(FsyncPolicy))
def test_what_was_put_in_is_there_after_a_restart(tmp_path: Path, policy: FsyncPolicy) -> None:
    settings = OutboxSettings(fsync=policy)
    with Outbox(tmp_path, 1, settings) as outbox:
        fill(outbox, 20)
        outbox.acknowledge(1, 5)
    with Outbox(tmp_path, 1, settings) as outbox:
        assert (outbox.epoch, outbox.acknowledged, outbox.last_sequence) == (1, 5, 20)
        assert everything(outbox) == expected(6, 20)
        assert outbox.put(payload(21)) == 21


def test_reading_is_bounded_in_count_and_bytes_but_gives_at_least_one(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 10)
        assert len(outbox.read(1, 4, 1_000_000)) == 4
        assert len(outbox.read(1, 10, 250)) == 2
        assert len(outbox.read(1, 10, 1)) == 1
        assert outbox.read(11, 10, 1_000) == []


def test_more_than_fits_in_memory_is_read_from_disk(tmp_path: Path) -> None:
    settings = OutboxSettings(
        fsync=FsyncPolicy.NEVER, memory_signals_max=10, segment_bytes=65_535, bytes_max=1 << 20
    )
    with Outbox(tmp_path, 1, settings) as outbox:
        fill(outbox, 2_000)
        assert everything(outbox) == expected(1, 2_000)


def test_acknowledged_files_are_removed_and_sequences_go_on(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1, SMALL) as outbox:
        for _ in range(20):
            fill(outbox, 200)
            outbox.acknowledge(1, outbox.last_sequence)
        assert outbox.pending == 0
        assert len(list(tmp_path.glob("*.segment"))) == 1
    with Outbox(tmp_path, 1, SMALL) as outbox:
        assert outbox.put(payload(0)) == 4_001


def test_a_full_outbox_takes_nothing_until_something_is_acknowledged(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1, SMALL) as outbox:
        with pytest.raises(OutboxFullError, match="unacknowledged"):
            fill(outbox, 10_000)
        last = outbox.last_sequence
        assert outbox.size_bytes <= SMALL.bytes_max
        with pytest.raises(OutboxFullError):
            outbox.put_many([payload(0), payload(0)])
        assert outbox.last_sequence == last
        outbox.acknowledge(1, last)
        assert outbox.put(payload(0)) == last + 1


def test_an_older_acknowledgement_changes_nothing(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 5)
        outbox.acknowledge(1, 4)
        outbox.acknowledge(1, 2)
        assert outbox.acknowledged == 4


def test_an_acknowledgement_beyond_the_last_moves_the_next_sequence(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 2)
        outbox.acknowledge(1, 9)
        assert outbox.put(payload(10)) == 10
        assert everything(outbox) == expected(10, 10)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        f"from ecp_client.master import Outbox; from pathlib import Path; Outbox(Path({str(tmp_path)!r}), 1)"
    )
    with Outbox(tmp_path, 1):
        with pytest.raises(OutboxLockedError):
            Outbox(tmp_path, 1)
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "OutboxLockedError" in other.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_another_master_is_refused(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        outbox.acknowledge(1, 1)
    with pytest.raises(OutboxError, match="master 1, not 2"):
        Outbox(tmp_path, 2)
    # The refusal left no lock behind.
    Outbox(tmp_path, 1).close()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match="give a folder"):
        Outbox(tmp_path / "file" / "outbox", 1)


def test_a_closed_outbox_takes_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1)
    outbox.close()
    outbox.close()
    with pytest.raises(ClosedError):
        outbox.put(b"x")


def test_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 5)
    (path,) = tmp_path.glob("*.segment")
    path.write_bytes(path.read_bytes()[:-3])
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.damage == []
        assert outbox.last_sequence == 4
        assert outbox.put(payload(5)) == 5
        assert everything(outbox) == expected(1, 5)


def test_damage_in_the_middle_costs_only_what_it_hit_and_is_told(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 9)
    (path,) = tmp_path.glob("*.segment")
    data = bytearray(path.read_bytes())
    at = data.index(payload(4))
    data[at] ^= 1
    path.write_bytes(data)
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.damage
        whole = expected(1, 9)
        del whole[4]
        assert everything(outbox) == whole
        assert outbox.hole_from(4) == 4
        assert outbox.hole_from(5) is None
        assert outbox.hole_from(10) is None


def test_a_damaged_header_costs_nothing(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 3)
    (path,) = tmp_path.glob("*.segment")
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.damage
        assert everything(outbox) == expected(1, 3)


def test_a_missing_file_in_the_middle_is_a_hole(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1, SMALL) as outbox:
        fill(outbox, 1_200)
    paths = sorted(tmp_path.glob("*.segment"))
    assert len(paths) == 3
    first, behind = int(paths[1].stem), int(paths[2].stem)
    paths[1].unlink()
    with Outbox(tmp_path, 1, SMALL) as outbox:
        assert outbox.hole_from(first) == behind - 1
        assert everything(outbox) == expected(1, first - 1) | expected(behind, 1_200)


@pytest.mark.parametrize("slot", [0, 1, None])
def test_one_damaged_state_slot_costs_an_acknowledgement_at_most(tmp_path: Path, slot: int | None) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 5)
        outbox.acknowledge(1, 3)
        outbox.remember(clock_offset_us=-7)
    path = tmp_path / "outbox.state"
    data = bytearray(path.read_bytes())
    for number in (0, 1) if slot is None else (slot,):
        data[number * 512 + 20] ^= 1
    path.write_bytes(data)
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.last_sequence == 5
        assert outbox.epoch == (0 if slot is None else 1)
        if slot is None:
            # Nobody knows what was sent: the server will tell at the login.
            assert outbox.maybe_sent == 5


def test_without_a_session_nothing_counts_as_sent(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 3)
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.maybe_sent == 0
        outbox.acknowledge(1, 1)
    with Outbox(tmp_path, 1) as outbox:
        assert outbox.maybe_sent == 3


def test_moved_signals_come_behind_the_given_position(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        fill(outbox, 7)
        outbox.remember(begin_epoch=True)
        outbox.move(4, 2, 500)
        assert (outbox.epoch, outbox.acknowledged, outbox.last_sequence) == (2, 500, 503)
        assert not outbox.begin_epoch
        assert everything(outbox) == {501: payload(5), 502: payload(6), 503: payload(7)}
        assert outbox.put(payload(8)) == 504
    with Outbox(tmp_path, 1) as outbox:
        assert everything(outbox) == {500 + number - 4: payload(number) for number in range(5, 9)}


def test_a_move_by_less_than_there_are(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1, SMALL) as outbox:
        fill(outbox, 1_200)
        outbox.move(0, 2, 3)
        assert everything(outbox) == {number + 3: payload(number) for number in range(1, 1_201)}


def test_puts_from_many_threads_each_get_a_sequence_of_their_own(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1) as outbox:
        given: list[int] = []

        def put() -> None:
            given.extend(outbox.put(b"x") for _ in range(200))

        threads = [threading.Thread(target=put) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(given) == list(range(1, 801))


def test_sync_may_run_while_files_change(tmp_path: Path) -> None:
    settings = OutboxSettings(fsync=FsyncPolicy.INTERVAL, segment_bytes=65_535, bytes_max=1 << 20)
    with Outbox(tmp_path, 1, settings) as outbox:
        stop = threading.Event()

        def sync() -> None:
            while not stop.is_set():
                outbox.sync()

        thread = threading.Thread(target=sync)
        thread.start()
        for _ in range(10):
            fill(outbox, 100)
            outbox.acknowledge(1, outbox.last_sequence)
        stop.set()
        thread.join()
        assert outbox.last_sequence == 1_000


def test_segments_must_fit_into_the_bound() -> None:
    with pytest.raises(SettingsError):
        OutboxSettings(segment_bytes=1 << 20, bytes_max=1 << 20)


class StalledDisk:
    """An fsync that does not return until the end, and must not be waited for by the thread that trades."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called = threading.Event()
        self.go_on = threading.Event()
        self.trading = threading.get_ident()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        assert threading.get_ident() != self.trading
        self.called.set()
        assert self.go_on.wait(60)
        self._fsync(descriptor)


def test_a_disk_that_stalls_holds_up_nobody_who_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OutboxSettings(segment_bytes=65_535, bytes_max=1 << 20)
    outbox = Outbox(tmp_path, 1, settings)
    outbox.put(payload(1))
    disk = StalledDisk(monkeypatch)
    syncing = threading.Thread(target=outbox.sync)
    syncing.start()
    assert disk.called.wait(60)
    # New files are begun, epochs change, and files are done with, all while the disk does not answer.
    fill(outbox, 2_000)
    outbox.acknowledge(1, 500)
    outbox.acknowledge(2, 1_900)
    outbox.remember(begin_epoch=True)
    assert len(outbox.read(1_901, 50, 100_000)) == 50
    assert len(list(tmp_path.glob("*.segment"))) > 3
    disk.go_on.set()
    syncing.join()
    monkeypatch.undo()
    outbox.sync()
    # Nothing is removed before the disk knows that it arrived.
    assert len(list(tmp_path.glob("*.segment"))) < 3
    outbox.close()
    with Outbox(tmp_path, 1, settings) as outbox:
        assert (outbox.epoch, outbox.acknowledged, outbox.begin_epoch) == (2, 1_900, True)
        assert everything(outbox) == expected(1_901, 2_001)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file a descriptor is")
def test_files_are_removed_only_behind_a_state_that_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Outbox(tmp_path, 1, OutboxSettings(segment_bytes=65_535, bytes_max=1 << 20)) as outbox:
        fill(outbox, 1_200)
        outbox.acknowledge(1, 1_200)
        synced: list[str] = []
        fsync = os.fsync

        def noted(descriptor: int) -> None:
            fsync(descriptor)
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            synced.append(f"{name} with {len(list(tmp_path.glob('*.segment')))} files")

        monkeypatch.setattr(os, "fsync", noted)
        outbox.sync()
        assert synced[-1] == "outbox.state with 3 files"
        assert len(list(tmp_path.glob("*.segment"))) == 1


def test_a_full_outbox_makes_room_though_nobody_synced(tmp_path: Path) -> None:
    with Outbox(tmp_path, 1, OutboxSettings(segment_bytes=65_535, bytes_max=200_000)) as outbox:
        for _ in range(10):
            fill(outbox, 1_000)
            outbox.acknowledge(1, outbox.last_sequence)
        assert outbox.size_bytes <= 200_000


@pytest.mark.parametrize("policy", [FsyncPolicy.ALWAYS, FsyncPolicy.INTERVAL])
def test_a_disk_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy: FsyncPolicy
) -> None:
    outbox = Outbox(tmp_path, 1, OutboxSettings(fsync=policy))
    fsync, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        failed.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    # It is in the outbox and will be sent: to say that it failed would have it sent twice.
    assert outbox.put(payload(1)) == 1
    assert ("not safe from a power cut" in caplog.text) == (policy is FsyncPolicy.ALWAYS)
    with pytest.raises(OutboxError, match="Input/output error"):
        outbox.sync()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (failed.clear(), fsync(descriptor))[1])
    outbox.sync()
    assert failed == []
    outbox.close()
    with Outbox(tmp_path, 1) as outbox:
        assert everything(outbox) == expected(1, 1)
