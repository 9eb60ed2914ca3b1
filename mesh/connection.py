"""Blocking gRPC connections for the command line: finds a running mesh, shows a token, words the errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from mesh import runfile
from mesh.errors import ConfigurationError, MeshError

Stub = TypeVar("Stub")
DEADLINE_SECONDS = 10.0
_HINTS = {
    grpc.StatusCode.UNAVAILABLE: "; is the mesh running? (`ecp up`)",
    grpc.StatusCode.DEADLINE_EXCEEDED: f"; no answer within {DEADLINE_SECONDS:.0f} s: the service's log may say why",
}
_CALL: type = grpc.Call  # the stubs believe that no RpcError is one; every failed call is


class RefusedError(MeshError):
    """A service refused a call, or did not answer."""


class Connection:
    """Channels to the services of one mesh. Every call has a deadline of `DEADLINE_SECONDS`."""

    def __init__(self, addresses: Mapping[str, str], operator_token: str) -> None:
        self._addresses = addresses
        self._token = operator_token
        self._channels: dict[str, grpc.Channel] = {}

    def stub(self, service: str, kind: Callable[[grpc.Channel], Stub]) -> Stub:
        """A stub for one of ingest, fanout, ledger and risk.

        Raises:
            ConfigurationError: nobody said where it is.
        """
        if service not in self._addresses:
            raise ConfigurationError(f"{service.upper()}_ADDRESS is not set: name where {service} answers")
        if service not in self._channels:
            channel = grpc.insecure_channel(self._addresses[service])
            self._channels[service] = grpc.intercept_channel(channel, _Operator(self._token))
        return kind(self._channels[service])

    def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels.values():
            channel.close()


class _CallDetails(grpc.ClientCallDetails):
    def __init__(self, details: grpc.ClientCallDetails, token: str) -> None:
        self.method = details.method
        self.timeout = details.timeout or DEADLINE_SECONDS
        self.metadata = (*(details.metadata or ()), ("authorization", f"Bearer {token}"))
        self.credentials = details.credentials
        self.wait_for_ready = None
        self.compression = None


class _Operator(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(  # type: ignore[no-untyped-def]  # the stubs' types of these fit no implementation
        self, continuation, client_call_details, request
    ):
        """Adds the token and a deadline."""
        return continuation(_CallDetails(client_call_details, self._token), request)


@contextmanager
def connected(data: Path | None = None) -> Iterator[Connection]:
    """Connects to the mesh of `ecp up`, or to the services named by LEDGER_ADDRESS, …, and OPERATOR_TOKEN.

    Raises:
        ConfigurationError: neither is there.
        RefusedError: a call inside failed.
    """
    connection = _from_environment() or _from_run_file(data)
    try:
        yield connection
    except grpc.RpcError as error:
        raise RefusedError(describe(error)) from error
    finally:
        connection.close()


def describe(error: grpc.RpcError) -> str:
    """One line for a failed call."""
    if not isinstance(error, _CALL):
        return str(error)
    code, details = error.code(), error.details()
    return f"{code.name}: {details}{_HINTS.get(code, '')}"


def _from_environment() -> Connection | None:
    found = {name: os.environ.get(f"{name.upper()}_ADDRESS", "") for name in runfile.SERVICES}
    if not any(found.values()):
        return None
    token = os.environ.get("OPERATOR_TOKEN", "")
    if not token:
        raise ConfigurationError(
            "OPERATOR_TOKEN is not set: name the operator's token beside the services' addresses"
        )
    if not token.isascii() or not token.isprintable():
        raise ConfigurationError(
            "OPERATOR_TOKEN holds characters that no token has: is there a line end in it?"
        )
    return Connection({name: address for name, address in found.items() if address}, token)


def _from_run_file(data: Path | None) -> Connection:
    found = runfile.read(data) if data else runfile.read()
    return Connection(found.grpc, found.operator_token)
