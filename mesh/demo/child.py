"""One of the demo's two child processes as the demo sees it: its process, its wire, and what it said last."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.demo.wire import Message, Wire, listening
from mesh.errors import MeshError
from mesh.process import Child, spawn

CONNECT_SECONDS_MAX = 30.0


class Player:
    """A child that plays masters or subscribers. Each message it sends goes to `on_message`; a kind can be awaited."""

    def __init__(
        self, name: str, process: Child, log_file: Path, on_message: Callable[[Message], None]
    ) -> None:
        self.name = name
        self._process = process
        self._log_file = log_file
        self._on_message = on_message
        self._wire: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._reading: asyncio.Task[None] | None = None

    def connected(self, wire: Wire) -> None:
        """Takes the child's connection."""
        if self._wire.done():
            wire.close()
            return
        self._wire.set_result(wire)
        self._reading = asyncio.create_task(self._read(wire))

    async def tell(self, kind: str, **fields: Any) -> None:
        """Sends the child one message.

        Raises:
            MeshError: the child never connected.
        """
        wire = await self._within(self._wire, CONNECT_SECONDS_MAX, "connect")
        await wire.send({"kind": kind, **fields})

    async def hear(self, kind: str, *, seconds_max: float) -> Message:
        """Waits for the child's next message of this kind.

        Raises:
            MeshError: it ended, or said nothing of the kind in time.
        """
        waiting = self._waiting.setdefault(kind, asyncio.get_running_loop().create_future())
        message: Message = await self._within(waiting, seconds_max, f"say {kind!r}")
        del self._waiting[kind]
        return message

    async def stop(self) -> None:
        """Ends the child. Safe to repeat."""
        if self._reading is not None:
            self._reading.cancel()
        await self._process.stop(grace_seconds=5)

    async def _within(self, future: asyncio.Future[Any], seconds_max: float, what: str) -> Any:
        ended = asyncio.ensure_future(self._process.wait())
        try:
            done, _ = await asyncio.wait(
                {future, ended}, timeout=seconds_max, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
        if future in done:
            return future.result()
        fate = (
            f"ended with {self._process.returncode}"
            if ended in done
            else f"did not {what} in {seconds_max:.0f} s"
        )
        raise MeshError(f"the demo's {self.name} {fate}; its log ends: {self._last_lines()}")

    async def _read(self, wire: Wire) -> None:
        async for message in wire.messages():
            waiting = self._waiting.setdefault(message["kind"], asyncio.get_running_loop().create_future())
            if not waiting.done():
                waiting.set_result(message)
            self._on_message(message)

    def _last_lines(self) -> str:
        try:
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "it wrote none"
        return " | ".join(lines[-3:]) or "it is empty"


@asynccontextmanager
async def playing(
    name: str, spec: dict[str, Any], folder: Path, on_message: Callable[[Message], None], *, sockets: Path
) -> AsyncIterator[Player]:
    """Starts `python -m mesh.demo.play_NAME` with `spec` in a private file, and stops it at the end.

    The spec gets `wire`, the socket to connect to, and `folder`, where the child leaves its books. The socket is made
    in `sockets`, a private folder whose path is short enough for one.
    """
    books = folder / name
    books.mkdir()
    wire_path, spec_path, log_file = sockets / f"{name}.sock", folder / f"{name}.json", folder / f"{name}.log"
    _write_spec(spec_path, {**spec, "wire": str(wire_path), "folder": str(books)})
    players: list[Player] = []
    async with listening(wire_path, lambda wire: players[0].connected(wire)):
        command: list[str | Path] = [sys.executable, "-P", "-m", f"mesh.demo.play_{name}", spec_path]
        players.append(Player(name, spawn(name, command, log_file=log_file), log_file, on_message))
        try:
            yield players[0]
        finally:
            await players[0].stop()


def _write_spec(path: Path, spec: dict[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(spec, file)
