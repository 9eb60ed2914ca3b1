"""Reads a connection a little at a time, so that what one peer sends keeps no other waiting; it understands nothing."""

from __future__ import annotations

import asyncio
from abc import abstractmethod


class TurnReader(asyncio.BufferedProtocol):
    """A protocol whose bytes come in pieces no longer than `turn`, one in each round of the event loop.

    asyncio would read 256 KiB at once: requests enough to keep every other connection waiting for a third of a second.
    """

    __slots__ = ("_turn",)

    def __init__(self, turn: memoryview) -> None:
        self._turn = turn

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go. All connections share it: they are taken before another one reads."""
        return self._turn

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        self.data_received(bytes(self._turn[:nbytes]))

    @abstractmethod
    def data_received(self, data: bytes) -> None:
        """Takes what the peer sent."""
