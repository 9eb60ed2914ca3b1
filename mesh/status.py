"""Reads how a running mesh is doing, through the services' gRPC calls alone; prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from execution.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from execution.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from execution.ledger.v1 import archive_service_pb2, archive_service_pb2_grpc
from execution.risk.v1 import risk_service_pb2, risk_service_pb2_grpc
from mesh.connection import Connection, describe
from mesh.errors import ConfigurationError
from mesh.runfile import SERVICES

ROWS_MAX = 1_000
STATE_PREFIX = "SUBSCRIPTION_STATE_"


@dataclass(slots=True)
class HeadStatus:
    """One master: its position in the log, and how far the archive is behind in sequences."""

    master_id: int
    epoch: int
    sequence: int
    connected: bool
    archive_behind: int | None


@dataclass(slots=True)
class StreamStatus:
    """One master within one subscriber's stream; lag in signals."""

    user_id: str
    master_id: int
    sent: int
    acknowledged: int
    lag: int
    state: str


@dataclass(slots=True)
class RiskStatus:
    """Risk's detector, and the users below the warning score."""

    leader: bool
    last_check_at: str
    model_version: str
    at_risk: dict[str, float]


@dataclass(slots=True)
class Status:
    """The whole mesh. `problems` names what could not be read."""

    health: dict[str, str] = field(default_factory=dict)
    heads: list[HeadStatus] = field(default_factory=list)
    streams: list[StreamStatus] = field(default_factory=list)
    archived_signals: int | None = None
    risk: RiskStatus | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_healthy(self) -> bool:
        """Whether every service serves and answered."""
        return not self.problems and all(state == "SERVING" for state in self.health.values())

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"healthy": self.is_healthy, **asdict(self)}


def read(connection: Connection) -> Status:
    """Asks every service; one that does not answer becomes a problem and costs the others nothing."""
    status = Status()
    for service in SERVICES:
        status.health[service] = _health(connection, service)
    archived: dict[int, int] = {}
    steps: list[tuple[str, Callable[[], None]]] = [
        ("archive", lambda: archived.update(_archive(connection, status))),
        ("heads", lambda: _heads(connection, status, archived)),
        ("streams", lambda: _streams(connection, status)),
        ("risk", lambda: _risk(connection, status)),
    ]
    for label, step in steps:
        try:
            step()
        except grpc.RpcError as error:
            status.problems.append(f"{label}: {describe(error)}")
        except ConfigurationError as error:
            status.problems.append(f"{label}: {error}")
    return status


def _health(connection: Connection, service: str) -> str:
    try:
        stub: Any = connection.stub(
            service, health_pb2_grpc.HealthStub
        )  # the stub package leaves its methods out
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
    except ConfigurationError:
        return "UNKNOWN"
    except grpc.RpcError as error:
        return describe(error).partition(":")[0]
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _archive(connection: Connection, status: Status) -> dict[int, int]:
    stub = connection.stub("ledger", archive_service_pb2_grpc.ArchiveServiceStub)
    answer = stub.GetArchiveStatus(archive_service_pb2.GetArchiveStatusRequest())
    status.archived_signals = answer.signal_count
    return {row.master_id: row.position.sequence for row in answer.positions}


def _heads(connection: Connection, status: Status, archived: dict[int, int]) -> None:
    stub = connection.stub("ingest", ingest_service_pb2_grpc.IngestServiceStub)
    answer = stub.ListHeads(ingest_service_pb2.ListHeadsRequest(page_size=ROWS_MAX))
    for head in answer.heads:
        behind = head.position.sequence - archived.get(head.master_id, 0)
        status.heads.append(
            HeadStatus(
                head.master_id, head.position.epoch, head.position.sequence, head.connected,
                max(0, behind) if status.archived_signals is not None else None,
            )
        )  # fmt: skip


def _streams(connection: Connection, status: Status) -> None:
    stub = connection.stub("fanout", fanout_service_pb2_grpc.FanoutServiceStub)
    answer = stub.ListStreams(fanout_service_pb2.ListStreamsRequest(page_size=ROWS_MAX))
    for stream in answer.streams:
        for cursor in stream.cursors:
            state = fanout_service_pb2.SubscriptionState.Name(cursor.state).removeprefix(STATE_PREFIX)
            status.streams.append(
                StreamStatus(
                    stream.user_id, cursor.master_id, cursor.sent.sequence, cursor.acknowledged.sequence, cursor.lag,
                    state,
                )
            )  # fmt: skip


def _risk(connection: Connection, status: Status) -> None:
    stub = connection.stub("risk", risk_service_pb2_grpc.RiskServiceStub)
    detector = stub.GetDetectorStatus(risk_service_pb2.GetDetectorStatusRequest())
    at_risk = stub.ListAtRisk(risk_service_pb2.ListAtRiskRequest(page_size=ROWS_MAX))
    last = detector.last_check_at.ToJsonString() if detector.last_check_at != Timestamp() else "never"
    status.risk = RiskStatus(
        detector.leader, last, detector.model_version, {user.user_id: user.score for user in at_risk.users}
    )
