"""The outbox on a disk that refuses: nothing is taken by half, and it is told as an error of the outbox."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from ecp_client.disk import FsyncPolicy
from ecp_client.errors import OutboxError
from ecp_client.master import Outbox, OutboxSettings
from ecp_client.master import outbox_files as outbox_files_module
from ecp_client.master.connection import Connection
from ecp_client.master.session import MasterSession
from ecp_client.master.state_file import StateFile

SMALL = OutboxSettings(fsync=FsyncPolicy.NEVER, segment_bytes=65_535, bytes_max=200_000)
LARGE = b"x" * 60_000


def test_a_disk_without_room_for_another_file_takes_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Outbox(tmp_path, 1, SMALL) as outbox:
        assert outbox.put_many([LARGE, LARGE]) == 1
        with monkeypatch.context() as patch:
            patch.setattr(outbox_files_module, "write_segment", full)
            for _ in range(2):
                with pytest.raises(OutboxError, match="No space left on device; the signal was not taken"):
                    outbox.put(LARGE)
            assert outbox.last_sequence == 2
        assert outbox.put(b"three") == 3
        assert outbox.read(3, 1, 10) == [b"three"]
    with Outbox(tmp_path, 1, SMALL) as outbox:
        assert (outbox.last_sequence, outbox.read(3, 1, 10)) == (3, [b"three"])


def test_a_position_that_cannot_be_written_stops_nothing_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server tells at the next login what it has."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Outbox(tmp_path, 1, SMALL) as outbox:
        outbox.put_many([b"signal"] * 100)
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "write", full)
            for sequence in range(1, 60):
                outbox.acknowledge(1, sequence)
            assert outbox.acknowledged == 59
        assert caplog.text.count("No space left on device") == 1
        outbox.acknowledge(1, 80)
    with Outbox(tmp_path, 1, SMALL) as outbox:
        assert (outbox.acknowledged, outbox.last_sequence) == (80, 100)


async def test_a_connection_ends_though_the_end_cannot_be_dealt_with() -> None:
    """Or its client would wait for the end of it, and never connect again."""

    class Session:
        end = None

        def connection_lost(self, reason: str) -> None:
            pass

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    connection = Connection(cast("Callable[[], MasterSession]", Session), fail)
    connection.session = connection._begin()
    with pytest.raises(OSError, match="Input/output error"):
        connection.connection_lost(None)
    assert connection.closed.done()
