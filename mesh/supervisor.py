"""Keeps one service's process alive: starts it, waits until it serves, starts it again when it dies.

It knows no protocol but gRPC health.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import EXIT_CONFIGURATION, ConfigurationError, MeshError
from mesh.process import Child, spawn

START_SECONDS_MAX = 60.0
RESTART_DELAY_SECONDS = 0.2
RESTART_DELAY_SECONDS_MAX = 5.0
STABLE_SECONDS = 10.0
POLL_SECONDS = 0.1
HEALTH_TIMEOUT_SECONDS = 1.0
LOG_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What to run: module `services.NAME` with this environment; its gRPC address tells whether it serves."""

    name: str
    environment: Mapping[str, str]
    grpc_address: str
    log_file: Path


@dataclass(slots=True)
class Supervised:
    """One service and its process. `restarts` counts the times that it died and was started again.

    `trouble` says why the last start of them failed, until one does not.
    """

    spec: ServiceSpec
    restarts: int = 0
    serving: bool = False
    trouble: str = ""
    child: Child | None = field(default=None, repr=False)
    _stopping: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> str:
        """One word for people."""
        if self.serving:
            return "running"
        return "restarting" if self.restarts else "starting"

    def start(self) -> None:
        """Starts the process and returns at once.

        Raises:
            MeshError: it could not be started.
        """
        command = [sys.executable, "-P", "-m", f"services.{self.name}"]
        self.child = spawn(self.name, command, environment=self.spec.environment, log_file=self.spec.log_file)

    async def until_serving(self) -> None:
        """Waits until the service answers SERVING.

        Raises:
            ConfigurationError: it ended because of its settings; the message is its own.
            MeshError: it ended otherwise, or does not serve within START_SECONDS_MAX.
        """
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                while not await self._probe():
                    self._raise_if_ended()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            raise MeshError(
                f"{self.name} does not serve after {START_SECONDS_MAX:.0f} s; its log is {self.spec.log_file}"
            ) from error

    async def keep_alive(self) -> None:
        """Starts the process again whenever it ends, until cancelled; waits longer when it ends at once."""
        delay = RESTART_DELAY_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await self._watch()
            self.serving = False
            stable = loop.time() - started > STABLE_SECONDS
            delay = RESTART_DELAY_SECONDS if stable else min(delay * 2, RESTART_DELAY_SECONDS_MAX)
            await asyncio.sleep(delay if self.restarts else RESTART_DELAY_SECONDS)
            self.restarts += 1
            try:
                self.start()
                self.trouble = ""
            except MeshError as error:
                self.trouble = str(error)

    async def stop(self) -> None:
        """Asks the process to end, and kills it when it does not. Safe to repeat."""
        if self.child is not None:
            self.serving = False
            await self.child.stop(grace_seconds=15)

    async def _watch(self) -> None:
        while self.child is not None and self.child.returncode is None:
            if not self.serving:
                await self._probe()
            await asyncio.sleep(POLL_SECONDS)

    async def _probe(self) -> bool:
        async with grpc.aio.insecure_channel(self.spec.grpc_address) as channel:
            try:
                check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]  # the stubs lack it
                answer = await check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError:
                return False
        self.serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return self.serving

    def _raise_if_ended(self) -> None:
        if self.child is None or self.child.returncode is None:
            return
        last = self.last_log_line()
        if self.child.returncode == EXIT_CONFIGURATION:
            raise ConfigurationError(f"{self.name}: {last}")
        raise MeshError(
            f"{self.name} ended with {self.child.returncode}: {last} (its log is {self.spec.log_file})"
        )

    def last_log_line(self) -> str:
        """The last line that the process wrote, in words where it is one of its log."""
        try:
            with self.spec.log_file.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return "it wrote no log"
        return in_words(next((line for line in reversed(lines) if line.strip()), "it wrote nothing"))


def in_words(line: str) -> str:
    """What a service's line says, without a log's fields and traceback; any other line as it is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if not isinstance(fields, dict) or "message" not in fields:
        return line
    return ": ".join(str(fields[name]) for name in ("message", "error.message") if fields.get(name))
