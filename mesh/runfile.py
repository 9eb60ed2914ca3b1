"""Where a running mesh can be found: addresses and tokens in one private JSON file; knows no network."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mesh.clone import ROOT
from mesh.errors import ConfigurationError

DEFAULT_FOLDER = ROOT / ".ecp"
FILE_NAME = "mesh.json"
SERVICES = ("ingest", "fanout", "ledger", "risk")


@dataclass(frozen=True, slots=True)
class RunFile:
    """How to reach a running mesh. Addresses are `host:port`; grpc and admin are keyed by service."""

    pid: int
    front_door: str
    grpc: dict[str, str]
    admin: dict[str, str]
    operator_token: str
    database_url: str
    redis_url: str
    data: str

    def write(self, folder: Path = DEFAULT_FOLDER) -> Path:
        """Writes the file for the owner's eyes only, whole or not at all; returns its path.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        path = folder / FILE_NAME
        partial = path.with_suffix(f".{self.pid}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(self), file, indent=2)
            partial.replace(path)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {path} ({error.strerror}): make the folder writable, or name one with --data"
            ) from error
        return path


def remove(folder: Path = DEFAULT_FOLDER, *, pid: int) -> None:
    """Removes the file if it still is the one of process `pid`."""
    with contextlib.suppress(ConfigurationError, OSError):
        if read(folder).pid == pid:
            (folder / FILE_NAME).unlink()


def read(folder: Path = DEFAULT_FOLDER) -> RunFile:
    """The file of the mesh that runs, or last ran, with this folder.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    path = folder / FILE_NAME
    try:
        return RunFile(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"no running mesh is known here ({path} does not exist): start one with `ecp up`, "
            "or name its folder with --data"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}; start the mesh again with `ecp up`"
        ) from error
