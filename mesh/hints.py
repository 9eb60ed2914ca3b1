"""The commands that `ecp up` prints: complete, and working as they are in another terminal. Runs none of them."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from mesh.running import Mesh


@dataclass(frozen=True, slots=True)
class Guest:
    """What `ecp up` has made for whoever wants to look around: one who follows one master."""

    user_id: str
    license_token: str
    master_id: int


def commands(mesh: Mesh, guest: Guest) -> list[tuple[str, str]]:
    """(what it shows, command) in the order in which to try them."""
    operator, master = mesh.operator_token, str(guest.master_id)
    subscribe = {"masters": [{"masterId": master, "fromSnapshot": {}}]}
    return [
        (
            "a live subscription stream",
            _call(mesh.grpc["fanout"], "fanout.v1.FanoutService/Subscribe", subscribe, guest.license_token),
        ),
        (
            "the head of a master",
            _call(mesh.grpc["ingest"], "ingest.v1.IngestService/GetHead", {"masterId": master}, operator),
        ),
        (
            "a user",
            _call(mesh.grpc["ledger"], "ledger.v1.UserService/GetUser", {"userId": guest.user_id}, operator),
        ),
        ("health", f"{_tool('grpcurl')} -plaintext {mesh.grpc['risk']} grpc.health.v1.Health/Check"),
        ("the services on an address", f"{_tool('grpcurl')} -plaintext {mesh.grpc['ledger']} list"),
    ]


def _call(address: str, method: str, request: object, token: str) -> str:
    return (
        f"{_tool('grpcurl')} -plaintext -H {shlex.quote(f'authorization: Bearer {token}')}"
        f" -d {shlex.quote(json.dumps(request))} {address} execution.{method}"
    )


def _tool(name: str) -> str:
    """The tool of this installation's environment, wherever the reader's terminal stands."""
    beside = Path(sys.executable).with_name(name)
    return shlex.quote(str(beside)) if beside.exists() else name
