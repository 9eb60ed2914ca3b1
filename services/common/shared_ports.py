"""Ports that several processes of ours listen on together (SO_REUSEPORT) and nobody else; it listens on none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from services.common.errors import ConfigurationError
from services.common.settings import Address


def share(listener: socket.socket) -> None:
    """Lets other processes of this user listen on the same port; to be called before it is bound."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


@contextmanager
def held(address: Address, where: str) -> Iterator[Address]:
    """Keeps an address for processes that `share` it; yields it with its port, should that have been 0.

    Somebody else who listens there already is noticed, although the kernel would let processes of one user share a
    port without a word. Who does not ask to share cannot have the port meanwhile.

    Raises:
        ConfigurationError: the address is in use, cannot be bound, or ports cannot be shared on this system.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError("this system cannot share a port between processes", where="WORKERS")
    with ExitStack() as stack:
        try:
            infos = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            port = address.port
            for family, kind, protocol, _, bound in infos[:1]:
                _require_free(family, kind, protocol, bound)
                holder = stack.enter_context(socket.socket(family, kind, protocol))
                _hold(holder, bound)
                port = holder.getsockname()[1]
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address}: {error.strerror}",
                where=where,
                do="stop the other process or choose another address",
            ) from error
        yield address.with_port(port)


def _require_free(family: int, kind: int, protocol: int, bound: tuple[object, ...]) -> None:
    """Listens there alone for a moment.

    Raises:
        OSError: somebody listens there already, or holds the port.
    """
    with socket.socket(family, kind, protocol) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.bind(bound)
        attempt.listen(1)


def _hold(holder: socket.socket, bound: tuple[object, ...]) -> None:
    share(holder)
    # Connections of a former process that linger in TIME_WAIT must not keep us from the port …
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(bound)
    # … but a newcomer's SO_REUSEADDR must not let it in beside us, before the first worker listens.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
