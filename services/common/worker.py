"""What one of several worker processes of a service knows of itself and of its siblings; it starts none."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field, model_validator

from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings

WORKERS_MAX: Final = 64
_PR_SET_PDEATHSIG: Final = 1


class WorkerSettings(ServiceSettings):
    """What a service reads that can run as several processes on one address (`services.common.workers`)."""

    shared_addresses: ClassVar[tuple[str, ...]] = ("grpc_bind_address",)
    """The fields that name what all workers listen on."""

    workers: int = Field(default=1, ge=1, le=WORKERS_MAX)
    """Processes that share the listening ports; `--workers` on the command line wins over it."""
    worker_failures_max: int = Field(default=10, ge=1, le=1_000)
    """How often in a row a worker may end before it serves; then all of them are ended."""
    worker_restart_seconds_min: float = Field(default=0.2, gt=0, le=60)
    worker_restart_seconds_max: float = Field(default=5.0, gt=0, le=600)
    """A worker that died is started again after a time between these, longer each time that it dies at once."""
    sibling_timeout_seconds: float = Field(default=2.0, gt=0, le=60)
    """How long a worker waits for another one's answer to what an operator asked."""

    worker_number: int | None = Field(default=None, ge=1, le=WORKERS_MAX)
    """Set for each worker by the process that starts them, as the next two are."""
    worker_folder: Path | None = None
    worker_parent_pid: int | None = Field(default=None, ge=1, le=2**31 - 1)

    @model_validator(mode="after")
    def _whole(self) -> WorkerSettings:
        if self.worker_number is not None and (self.worker_folder is None or self.worker_parent_pid is None):
            raise ValueError("WORKER_NUMBER is not to be set by hand: use WORKERS or --workers")
        if self.worker_restart_seconds_min > self.worker_restart_seconds_max:
            raise ValueError("WORKER_RESTART_SECONDS_MIN must not exceed WORKER_RESTART_SECONDS_MAX")
        return self

    @property
    def shares_ports(self) -> bool:
        """Whether this process is one of several workers, which listen on the same ports."""
        return self.worker_number is not None


def call_socket(folder: Path, number: int) -> Path:
    """Where a worker answers its siblings' calls."""
    return folder / f"{number}.grpc"


def notify_socket(folder: Path, number: int) -> Path:
    """Where the parent hears from a worker."""
    return folder / f"{number}.notify"


def end_with_parent(parent_pid: int) -> None:
    """From now on the kernel kills this process when its parent ends, however that comes (on Linux).

    Raises:
        ConfigurationError: the parent has ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise ConfigurationError("the process that started this worker is gone", where="WORKER_PARENT_PID")


def ready_message(served: object) -> str:
    """What a process says when it serves; where its admin port is, if it has one, for those who started it."""
    port = getattr(served, "admin_port", None)
    return f"READY=1\nX_ADMIN_PORT={port}" if isinstance(port, int) else "READY=1"
