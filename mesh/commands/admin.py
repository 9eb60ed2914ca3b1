"""`ecp admin`: users, masters, licenses and subscriptions, all through the ledger's gRPC services."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.commands.choices import Data

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message

    from mesh.connection import Connection

INT64_MAX = 2**63 - 1
UINT32_MAX = 2**32 - 1
OVERLAP_HOURS_MAX = 30 * 24
AMOUNT_MAX = INT64_MAX // 10**8

admin = typer.Typer(
    name="admin", help="Create and change users, masters, licenses and subscriptions.", no_args_is_help=True
)
user = typer.Typer(name="user", help="Users: owners of masters, and subscribers.", no_args_is_help=True)
master = typer.Typer(name="master", help="Masters and their signing keys.", no_args_is_help=True)
license_ = typer.Typer(name="license", help="License tokens.", no_args_is_help=True)
subscription = typer.Typer(name="subscription", help="Who follows whom.", no_args_is_help=True)
trust = typer.Typer(name="trust", help="Trust scores and their evidence.", no_args_is_help=True)
for group in (user, master, license_, subscription, trust):
    admin.add_typer(group)

RequestId = Annotated[
    str, typer.Option(help="Idempotency key: the same one gives the same answer.", show_default="new")
]
PageSize = Annotated[int, typer.Option(min=1, max=1000, help="Rows to show.")]
PageToken = Annotated[str, typer.Option(help="`next_page_token` of the page before.")]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]
MasterId = Annotated[int, typer.Argument(min=1, max=INT64_MAX, help="The master's number.")]
OverlapHours = Annotated[
    float, typer.Option(min=0, max=OVERLAP_HOURS_MAX, help="How long what it replaces stays valid.")
]


class Mode(StrEnum):
    """Account mode."""

    HEDGING = "hedging"
    NETTING = "netting"


class Scope(StrEnum):
    """What a pause withholds."""

    CLOSE_ONLY = "close-only"
    ALL = "all"


def _new_id() -> str:
    return str(uuid.uuid4())


def _call(data: Path | None, call: Callable[[Connection], Message]) -> None:
    """Makes one call and prints its answer as JSON, with the contract's field names."""
    from google.protobuf.json_format import MessageToDict

    from mesh.connection import connected

    with connected(data) as connection:
        answer = call(connection)
    fields = MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    typer.echo(json.dumps(fields, indent=2))


def _duration(**parts: float) -> Duration:
    """A Duration from the arguments of timedelta."""
    from google.protobuf.duration_pb2 import Duration

    made = Duration()
    made.FromTimedelta(timedelta(**parts))
    return made


def _amount_e8(text: str) -> int:
    """An amount of money in units of 1e-8, exactly."""
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise typer.BadParameter(f"{text!r} is not an amount such as 49.90", param_hint="--fee") from error
    if not amount.is_finite() or not 0 <= amount <= AMOUNT_MAX:
        raise typer.BadParameter(f"{text!r} is not between 0 and {AMOUNT_MAX}", param_hint="--fee")
    scaled = amount.scaleb(8)
    if scaled != scaled.to_integral_value():
        raise typer.BadParameter(f"{text!r} has more than 8 decimals", param_hint="--fee")
    return int(scaled)


@user.command("create")
def create_user(
    email: Annotated[str, typer.Option(help="E-mail address, unique.")],
    name: Annotated[str, typer.Option(help="For people.")],
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Create a user."""
    from execution.ledger.v1 import user_service_pb2 as pb
    from execution.ledger.v1 import user_service_pb2_grpc as rpc

    request = pb.CreateUserRequest(request_id=request_id or _new_id(), email=email, display_name=name)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.UserServiceStub).CreateUser(request))


@user.command("get")
def get_user(user_id: str, data: Data = None) -> None:
    """Show a user."""
    from execution.ledger.v1 import user_service_pb2 as pb
    from execution.ledger.v1 import user_service_pb2_grpc as rpc

    _call(
        data,
        lambda mesh: mesh.stub("ledger", rpc.UserServiceStub).GetUser(pb.GetUserRequest(user_id=user_id)),
    )


@user.command("list")
def list_users(page_size: PageSize = 100, page_token: PageToken = "", data: Data = None) -> None:
    """List users in order of creation."""
    from execution.ledger.v1 import user_service_pb2 as pb
    from execution.ledger.v1 import user_service_pb2_grpc as rpc

    request = pb.ListUsersRequest(page_size=page_size, page_token=page_token)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.UserServiceStub).ListUsers(request))


@master.command("create")
def create_master(
    owner: Annotated[str, typer.Option(help="UUID of the owner.")],
    name: Annotated[str, typer.Option(help="For people.")],
    mode: Annotated[Mode, typer.Option(help="Account mode.")] = Mode.HEDGING,
    signals_per_second: Annotated[
        int, typer.Option(min=0, max=UINT32_MAX, help="Average rate allowed; 0 is no limit.")
    ] = 0,
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Create a master and its first signing key; the secret is shown (base64) only now."""
    from execution.common.v1 import signal_pb2
    from execution.ledger.v1 import master_service_pb2 as pb
    from execution.ledger.v1 import master_service_pb2_grpc as rpc

    request = pb.CreateMasterRequest(
        request_id=request_id or _new_id(), owner_user_id=owner, display_name=name,
        account_mode=signal_pb2.AccountMode.Value(f"ACCOUNT_MODE_{mode.name}"),
        signals_per_second_max=signals_per_second,
    )  # fmt: skip
    _call(data, lambda mesh: mesh.stub("ledger", rpc.MasterServiceStub).CreateMaster(request))


@master.command("list")
def list_masters(page_size: PageSize = 100, page_token: PageToken = "", data: Data = None) -> None:
    """List masters."""
    from execution.ledger.v1 import master_service_pb2 as pb
    from execution.ledger.v1 import master_service_pb2_grpc as rpc

    request = pb.ListMastersRequest(page_size=page_size, page_token=page_token)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.MasterServiceStub).ListMasters(request))


@master.command("rotate-key")
def rotate_key(
    master_id: MasterId,
    overlap_hours: OverlapHours = 24,
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Make a new signing key; older ones stay valid for the overlap."""
    from execution.ledger.v1 import master_service_pb2 as pb
    from execution.ledger.v1 import master_service_pb2_grpc as rpc

    request = pb.RotateSigningKeyRequest(
        request_id=request_id or _new_id(), master_id=master_id, overlap=_duration(hours=overlap_hours)
    )
    _call(data, lambda mesh: mesh.stub("ledger", rpc.MasterServiceStub).RotateSigningKey(request))


@master.command("revoke-key")
def revoke_key(master_id: MasterId, key_id: str, data: Data = None) -> None:
    """Revoke a signing key at once; its sessions are closed."""
    from execution.ledger.v1 import master_service_pb2 as pb
    from execution.ledger.v1 import master_service_pb2_grpc as rpc

    request = pb.RevokeSigningKeyRequest(master_id=master_id, key_id=key_id)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.MasterServiceStub).RevokeSigningKey(request))


@license_.command("issue")
def issue_license(
    user_id: str,
    days: Annotated[float, typer.Option(min=0, max=400, help="How long it counts.")] = 30,
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Issue a license; its token is shown only now."""
    from execution.ledger.v1 import license_service_pb2 as pb
    from execution.ledger.v1 import license_service_pb2_grpc as rpc

    request = pb.IssueLicenseRequest(
        request_id=request_id or _new_id(), user_id=user_id, validity=_duration(days=days)
    )
    _call(data, lambda mesh: mesh.stub("ledger", rpc.LicenseServiceStub).IssueLicense(request))


@license_.command("rotate")
def rotate_license(
    license_id: str,
    overlap_hours: OverlapHours = 24,
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Issue a new token for the same user; the old one stays valid for the overlap."""
    from execution.ledger.v1 import license_service_pb2 as pb
    from execution.ledger.v1 import license_service_pb2_grpc as rpc

    request = pb.RotateLicenseRequest(
        request_id=request_id or _new_id(), license_id=license_id, overlap=_duration(hours=overlap_hours)
    )
    _call(data, lambda mesh: mesh.stub("ledger", rpc.LicenseServiceStub).RotateLicense(request))


@license_.command("revoke")
def revoke_license(license_id: str, reason: Reason, data: Data = None) -> None:
    """Revoke a license at once; its sessions and streams end within a second."""
    from execution.ledger.v1 import license_service_pb2 as pb
    from execution.ledger.v1 import license_service_pb2_grpc as rpc

    request = pb.RevokeLicenseRequest(license_id=license_id, reason=reason)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.LicenseServiceStub).RevokeLicense(request))


@license_.command("list")
def list_licenses(
    user_id: str, page_size: PageSize = 100, page_token: PageToken = "", data: Data = None
) -> None:
    """List a user's licenses, newest first."""
    from execution.ledger.v1 import license_service_pb2 as pb
    from execution.ledger.v1 import license_service_pb2_grpc as rpc

    request = pb.ListLicensesRequest(user_id=user_id, page_size=page_size, page_token=page_token)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.LicenseServiceStub).ListLicenses(request))


@subscription.command("create")
def create_subscription(
    user_id: str,
    master_id: MasterId,
    fee: Annotated[str, typer.Option(help="Fee of the first period, such as 49.90.")] = "0",
    asset: Annotated[str, typer.Option(help="The fee's asset.")] = "USD",
    platform_share_bps: Annotated[int, typer.Option(min=0, max=10_000, help="The platform's share.")] = 2_000,
    request_id: RequestId = "",
    data: Data = None,
) -> None:
    """Let a user follow a master."""
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    fee_e8 = _amount_e8(fee)
    request = pb.CreateSubscriptionRequest(
        request_id=request_id or _new_id(), user_id=user_id, master_id=master_id, fee_e8=fee_e8,
        fee_asset=asset if fee_e8 else "", platform_share_bps=platform_share_bps if fee_e8 else 0,
    )  # fmt: skip
    _call(data, lambda mesh: mesh.stub("ledger", rpc.SubscriptionServiceStub).CreateSubscription(request))


@subscription.command("list")
def list_subscriptions(
    user_id: Annotated[str, typer.Option(help="Only this user's.")] = "",
    master_id: Annotated[int, typer.Option(min=0, max=INT64_MAX, help="Only this master's.")] = 0,
    page_size: PageSize = 100,
    page_token: PageToken = "",
    data: Data = None,
) -> None:
    """List subscriptions in order of creation."""
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    request = pb.ListSubscriptionsRequest(
        user_id=user_id, master_id=master_id, page_size=page_size, page_token=page_token
    )
    _call(data, lambda mesh: mesh.stub("ledger", rpc.SubscriptionServiceStub).ListSubscriptions(request))


@subscription.command("pause")
def pause_subscription(
    subscription_id: str,
    reason: Reason,
    scope: Annotated[Scope, typer.Option(help="What to withhold.")] = Scope.CLOSE_ONLY,
    data: Data = None,
) -> None:
    """Withhold signals that open risk; closes still pass."""
    from execution.ledger.v1 import license_service_pb2
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    request = pb.PauseSubscriptionRequest(
        subscription_id=subscription_id, reason=reason,
        scope=license_service_pb2.PauseScope.Value(f"PAUSE_SCOPE_{scope.name}"),
    )  # fmt: skip
    _call(data, lambda mesh: mesh.stub("ledger", rpc.SubscriptionServiceStub).PauseSubscription(request))


@subscription.command("resume")
def resume_subscription(subscription_id: str, reason: Reason, data: Data = None) -> None:
    """End a pause, whoever made it."""
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    request = pb.ResumeSubscriptionRequest(subscription_id=subscription_id, reason=reason)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.SubscriptionServiceStub).ResumeSubscription(request))


@subscription.command("cancel")
def cancel_subscription(subscription_id: str, reason: Reason, data: Data = None) -> None:
    """End a subscription for good."""
    from execution.ledger.v1 import subscription_service_pb2 as pb
    from execution.ledger.v1 import subscription_service_pb2_grpc as rpc

    request = pb.CancelSubscriptionRequest(subscription_id=subscription_id, reason=reason)
    _call(data, lambda mesh: mesh.stub("ledger", rpc.SubscriptionServiceStub).CancelSubscription(request))


@trust.command("explain")
def explain_trust(user_id: str, data: Data = None) -> None:
    """Show a user's trust, its terms, and the signals behind it."""
    from execution.risk.v1 import risk_service_pb2 as pb
    from execution.risk.v1 import risk_service_pb2_grpc as rpc

    request = pb.ExplainTrustRequest(user_id=user_id)
    _call(data, lambda mesh: mesh.stub("risk", rpc.RiskServiceStub).ExplainTrust(request))


@trust.command("override")
def override_trust(
    user_id: str,
    score: Annotated[float, typer.Option(min=0, max=100, help="The new score.")],
    operator: Annotated[str, typer.Option(help="Who decides.")],
    reason: Reason,
    data: Data = None,
) -> None:
    """Set a user's trust on your word; it is stored with your name and reason."""
    from execution.risk.v1 import risk_service_pb2 as pb
    from execution.risk.v1 import risk_service_pb2_grpc as rpc

    request = pb.OverrideTrustRequest(user_id=user_id, score=score, operator_name=operator, reason=reason)
    _call(data, lambda mesh: mesh.stub("risk", rpc.RiskServiceStub).OverrideTrust(request))
