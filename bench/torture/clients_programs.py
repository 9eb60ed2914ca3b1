"""The stock clients that read the stream, and how each is started; it starts none."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.licenses import MASTER_ID
from bench.torture.clients_judge import Documents, Lines, Output, StreamJudge
from mesh import typescript
from mesh.clone import ROOT
from mesh.errors import MeshError

_SUBSCRIBE: Final = "execution.fanout.v1.FanoutService/Subscribe"
_KEEPALIVE_SECONDS: Final = "10"


class AbsentError(MeshError):
    """The tool is not on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a client reads, and as whom."""

    address: str
    """host:port"""
    license_token: str
    ca_file: Path | None
    """Certificates to trust; None for plaintext."""
    positions_file: Path
    """Where a client that keeps positions does so."""


Command = Callable[[Endpoint], list[str]]


@dataclass(frozen=True, slots=True)
class StockClient:
    """One client. `command` raises AbsentError where it cannot be started."""

    name: str
    command: Command
    output: Callable[[StreamJudge], Output]


def _grpcio(api: str) -> Command:
    def command(endpoint: Endpoint) -> list[str]:
        tls = [] if endpoint.ca_file is None else ["--ca-file", str(endpoint.ca_file)]
        return [
            sys.executable, "-P", "-m", "bench.torture.clients_reader", "--api", api, "--fanout", endpoint.address,
            "--license", endpoint.license_token, "--master", str(MASTER_ID), *tls,
        ]  # fmt: skip

    return command


def _grpclib(endpoint: Endpoint) -> list[str]:
    example = ROOT / "clients" / "betterproto" / "subscriber.py"
    if not example.exists():
        raise AbsentError("the examples are not beside this installation")
    return [sys.executable, str(example), *_example_arguments(endpoint)]


def _grpc_js(endpoint: Endpoint) -> list[str]:
    try:
        command = typescript.command()
    except typescript.NoNodeError as error:
        raise AbsentError(str(error)) from error
    return [*command, *_example_arguments(endpoint)]


def _example_arguments(endpoint: Endpoint) -> list[str]:
    tls = ["--plaintext"] if endpoint.ca_file is None else ["--ca-file", str(endpoint.ca_file)]
    return [
        "--fanout", endpoint.address, "--license", endpoint.license_token, "--master", str(MASTER_ID),
        "--start", "beginning", "--positions", str(endpoint.positions_file), *tls,
    ]  # fmt: skip


def _grpcurl(endpoint: Endpoint) -> list[str]:
    tls = ["-plaintext"] if endpoint.ca_file is None else ["-cacert", str(endpoint.ca_file)]
    return [
        _tool("grpcurl"), *tls, "-keepalive-time", _KEEPALIVE_SECONDS,
        "-H", f"authorization: Bearer {endpoint.license_token}", "-d", _request("grpcurl"),
        endpoint.address, _SUBSCRIBE,
    ]  # fmt: skip


def _buf_curl(endpoint: Endpoint) -> list[str]:
    scheme, tls = "http", ["--http2-prior-knowledge"]
    if endpoint.ca_file is not None:
        scheme, tls = "https", ["--cacert", str(endpoint.ca_file)]
    return [
        _tool("buf"), "curl", "--protocol", "grpc", *tls,
        "--header", f"authorization: Bearer {endpoint.license_token}", "--data", _request("buf curl"),
        f"{scheme}://{endpoint.address}/{_SUBSCRIBE}",
    ]  # fmt: skip


def _request(client: str) -> str:
    return json.dumps({"masters": [{"masterId": str(MASTER_ID), "after": {}}], "client": client})


def _tool(name: str) -> str:
    """The tool of this environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise AbsentError(f"there is no {name} on this machine")
    return found


STOCK_CLIENTS: Final = (
    StockClient("grpcio", _grpcio("sync"), Lines),
    StockClient("grpc.aio", _grpcio("aio"), Lines),
    StockClient("grpclib", _grpclib, Lines),
    StockClient("grpc-js", _grpc_js, Lines),
    StockClient("grpcurl", _grpcurl, Documents),
    StockClient("buf curl", _buf_curl, Documents),
)
