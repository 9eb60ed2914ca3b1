"""The outbox on a disk that refuses: nothing is taken by half, and it is told as an error of the outbox."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ecp_client.disk import FsyncPolicy
from ecp_client.errors import OutboxError
from ecp_client.master import Outbox, OutboxSettings
from ecp_client.master import outbox_files as outbox_files_module

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
