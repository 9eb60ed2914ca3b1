"""The small file in which an outbox keeps its position: two slots, written in turn, so that one is always whole."""

from __future__ import annotations

import os
from pathlib import Path

from ecp_client.errors import OutboxError
from ecp_client.master.outbox_format import SLOT_OFFSETS, OutboxState, parse_state

# The file may lag behind by so many acknowledgements: the server tells at the login what it has.
ACKNOWLEDGEMENTS_PER_WRITE = 16


class StateFile:
    """An OutboxState and its file. `was_found` says whether the file held one."""

    def __init__(self, path: Path, master_id: int) -> None:
        """Raises:
        OutboxError: the file is another master's.
        OSError: it cannot be read or made.
        """
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        found = parse_state(self._file.read())
        if found is not None and found.master_id != master_id:
            self._file.close()
            raise OutboxError(
                f"{path.parent}: this is the outbox of master {found.master_id}, not {master_id}"
            )
        self.was_found = found is not None
        self.state = found or OutboxState(master_id)
        self._unwritten = 0

    def acknowledged(self) -> None:
        """The position moved forward within its epoch: written now and then."""
        self._unwritten += 1
        if self._unwritten >= ACKNOWLEDGEMENTS_PER_WRITE:
            self.write(durable=False)

    def write(self, *, durable: bool) -> None:
        """Writes the state over the older slot; `durable` forces it to the disk."""
        self._unwritten = 0
        self.state.generation += 1
        self._file.seek(SLOT_OFFSETS[self.state.generation % 2])
        self._file.write(self.state.to_slot())
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; safe to repeat."""
        self._file.close()
