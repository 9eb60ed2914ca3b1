"""Free TCP ports for one mesh; two meshes on one machine never get the same ones. It opens no server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mesh.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
FIRST_PORT = 20_000
EPHEMERAL_PORT_DEFAULT = 32_768
BLOCK_PORTS = 32
BLOCKS_MIN = 64


class PortBlock:
    """A run of ports that this mesh alone draws from."""

    def __init__(self, first: int, last: int) -> None:
        self._next = first
        self._last = last

    def take(self) -> int:
        """The next free port of the block.

        Raises:
            ConfigurationError: the block is used up.
        """
        while self._next <= self._last:
            port = self._next
            self._next += 1
            if is_free(port):
                return port
        raise ConfigurationError(f"no free port left in the block that ends at {self._last}")


@contextmanager
def port_block() -> Iterator[PortBlock]:
    """A block of ports below the ephemeral range, held until the end of the context.

    Its first port is bound for as long and serves as the lock: whoever cannot bind it takes another block.
    Outgoing connections cannot take these ports meanwhile, as the kernel gives those ephemeral ones.

    Raises:
        ConfigurationError: every block is taken.
    """
    count = (_ephemeral_first() - FIRST_PORT) // BLOCK_PORTS
    with ExitStack() as stack:
        for attempt in range(count):
            first = FIRST_PORT + (os.getpid() + attempt) % count * BLOCK_PORTS
            guard = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                guard.bind((LOOPBACK, first))
            except OSError:
                continue
            yield PortBlock(first + 1, first + BLOCK_PORTS - 1)
            return
    raise ConfigurationError(f"no free block of ports between {FIRST_PORT} and {_ephemeral_first()}")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def require_free(port: int) -> None:
    """Checks that a server of ours could listen on the port of the loopback.

    Raises:
        ConfigurationError: it could not.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError as error:
            raise ConfigurationError(
                f"port {port} is not for ordinary users ({error.strerror}): choose one above 1023"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"port {port} is in use on {LOOPBACK}: stop what uses it, or choose another"
            ) from error


def _ephemeral_first() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return EPHEMERAL_PORT_DEFAULT
    return end_of_blocks(int(text.split()[0]))


def end_of_blocks(ephemeral_first: int) -> int:
    """The port before which blocks end, for a machine whose outgoing connections get ports from `ephemeral_first` on.

    Where that leaves room for few blocks, as `ip_local_port_range = 1024 65535` does, blocks lie among those ports.
    """
    fits = ephemeral_first >= FIRST_PORT + BLOCKS_MIN * BLOCK_PORTS
    return ephemeral_first if fits else EPHEMERAL_PORT_DEFAULT
