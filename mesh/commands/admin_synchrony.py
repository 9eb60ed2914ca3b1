"""`ecp admin resync` and `ecp admin subscription transitions`: who is in step, and bringing them there again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mesh.commands.admin import INT64_MAX, PageSize, PageToken, Reason, admin, subscription
from mesh.commands.choices import Data

if TYPE_CHECKING:
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from mesh.connection import Connection

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the contract's field names.")]

_PAGE: Final = 1_000
_POLL_SECONDS: Final = 0.25


@admin.command("resync")
def resync(
    reason: Reason,
    subscription_id: Annotated[
        str, typer.Option("--subscription", help="Only this subscription (UUID).")
    ] = "",
    user_id: Annotated[
        str, typer.Option("--user", "--subscriber", help="Only this subscriber's (UUID).")
    ] = "",
    master_id: Annotated[
        int, typer.Option("--master", min=0, max=INT64_MAX, help="Only this master's; 0 is any.")
    ] = 0,
    wait_seconds: Annotated[
        float,
        typer.Option(
            "--wait", min=0, max=86_400, help="Wait until they are in step, at most so many seconds."
        ),
    ] = 0,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Trigger a full sync for the affected subscriptions: snapshot, then everything after it.

    Live streams get it at once, others with their next stream, paused ones when the pause ends. Safe to repeat. With
    --wait the exit code is 1 when some are not in step by then.
    """
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from mesh.connection import connected

    if not (subscription_id or user_id or master_id):
        raise typer.BadParameter("name a subscription, a subscriber or a master", param_hint="--subscription")
    request = pb.RequestFullSyncRequest(
        subscription_id=subscription_id,
        user_id=user_id,
        master_id=master_id,
        reason=reason,
        page_size=_PAGE,
    )
    with connected(data) as connection:
        asked = list(_ask(connection, request))
        if wait_seconds:
            asked = _wait(connection, asked, wait_seconds)
    typer.echo(_json(asked) if as_json else _lines(asked))
    if wait_seconds and any(one.full_sync_due for one in asked):
        raise typer.Exit(1)


@subscription.command("transitions")
def transitions(
    subscription_id: str,
    page_size: PageSize = 100,
    page_token: PageToken = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Show what became of a subscription: pauses, gaps, full syncs and its end, each with time and reason."""
    from google.protobuf.json_format import MessageToDict

    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc
    from mesh.connection import connected

    request = pb.ListTransitionsRequest(
        subscription_id=subscription_id, page_size=page_size, page_token=page_token
    )
    with connected(data) as connection:
        answer = connection.stub("ledger", rpc.SubscriptionServiceStub).ListTransitions(request)
    if as_json:
        fields = MessageToDict(
            answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        typer.echo(json.dumps(fields, indent=2))
        return
    for one in answer.transitions:
        typer.echo(_transition(one))
    if answer.next_page_token:
        typer.echo(f"older ones: --page-token {answer.next_page_token}")


def _ask(connection: Connection, request: pb.RequestFullSyncRequest) -> Iterator[pb.Subscription]:
    """Asks page by page; whoever was reached when a call fails stays asked for."""
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    stub = connection.stub("ledger", rpc.SubscriptionServiceStub)
    while True:
        answer = stub.RequestFullSync(request)
        yield from answer.subscriptions
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def _wait(connection: Connection, asked: list[pb.Subscription], wait_seconds: float) -> list[pb.Subscription]:
    """The subscriptions as they are once no full sync is due any more, or the time is over."""
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    stub = connection.stub("ledger", rpc.SubscriptionServiceStub)
    until = time.monotonic() + wait_seconds
    now = {one.subscription_id: one for one in asked}
    due = list(now)
    while due and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        for one in due:
            now[one] = stub.GetSubscription(pb.GetSubscriptionRequest(subscription_id=one)).subscription
        due = [one for one in due if now[one].full_sync_due]
    return list(now.values())


def _json(asked: list[pb.Subscription]) -> str:
    from google.protobuf.json_format import MessageToDict

    fields: list[dict[str, Any]] = [
        MessageToDict(one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for one in asked
    ]
    return json.dumps({"subscriptions": fields}, indent=2)


def _lines(asked: list[pb.Subscription]) -> str:
    from execution.ledger.v1 import subscription_service_pb2 as pb

    lines = [
        f"{one.subscription_id}  user {one.user_id}  master {one.master_id}"
        f"  {pb.SyncState.Name(one.sync_state).removeprefix('SYNC_STATE_')}"
        f"{'  (full sync due)' if one.full_sync_due else ''}"
        for one in asked
    ]
    due = sum(1 for one in asked if one.full_sync_due)
    return "\n".join([*lines, f"{len(asked)} subscriptions, {due} with a full sync that is due"])


def _transition(one: pb.SubscriptionTransition) -> str:
    from execution.ledger.v1 import license_service_pb2
    from execution.ledger.v1 import subscription_service_pb2 as pb

    kind = pb.TransitionKind.Name(one.kind).removeprefix("TRANSITION_KIND_")
    if one.kind == pb.TRANSITION_KIND_SYNC:
        names = [pb.SyncState.Name(state) for state in (one.sync_before, one.sync_after)]
    else:
        names = [license_service_pb2.PauseScope.Name(scope) for scope in (one.pause_before, one.pause_after)]
    before, after = (_short(name) for name in names)
    at = one.changed_at.ToDatetime().isoformat(sep=" ", timespec="milliseconds")
    return f"{at}Z  {kind:<9}  {before} -> {after}  {one.reason}".rstrip()


def _short(name: str) -> str:
    short = name.removeprefix("SYNC_STATE_").removeprefix("PAUSE_SCOPE_")
    return "-" if short == "UNSPECIFIED" else short


__all__ = ["admin", "resync", "transitions"]
