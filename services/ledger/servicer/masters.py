"""MasterService over the master store."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from execution.common.v1 import signal_pb2
from execution.ledger.v1 import master_service_pb2 as pb
from execution.ledger.v1 import master_service_pb2_grpc
from services.common.errors import InvalidInputError
from services.common.rpc import Context
from services.ledger.domain import fields, masters
from services.ledger.domain.licenses import token_sha256
from services.ledger.domain.masters import AccountMode, Master, NewMaster, SigningKey
from services.ledger.servicer import convert
from services.ledger.store.masters import Authorization, MasterStore

DISPLAY_NAME_CHARACTERS_MAX = 100
_SIGNAL_AGE_MIN = timedelta(milliseconds=1)


class MasterServicer(master_service_pb2_grpc.MasterServiceServicer):
    """See the contract."""

    def __init__(self, store: MasterStore, *, key_overlap: timedelta) -> None:
        self._masters = store
        self._key_overlap = key_overlap

    async def CreateMaster(
        self, request: pb.CreateMasterRequest, context: Context
    ) -> pb.CreateMasterResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        master, signing_key = await self._masters.create(key, new_master_from_pb(request))
        return pb.CreateMasterResponse(master=master_to_pb(master), key=signing_key_to_pb(signing_key))

    async def GetMaster(self, request: pb.GetMasterRequest, context: Context) -> pb.GetMasterResponse:
        """See the contract."""
        master = await self._masters.get(fields.master_id_of(request.master_id))
        return pb.GetMasterResponse(master=master_to_pb(master))

    async def ListMasters(self, request: pb.ListMastersRequest, context: Context) -> pb.ListMastersResponse:
        """See the contract."""
        page = await self._masters.page(convert.page_of(request))
        return pb.ListMastersResponse(masters=map(master_to_pb, page.items), next_page_token=page.next_token)

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        made = await self._masters.rotate_key(
            key, fields.master_id_of(request.master_id), overlap=self._overlap_of(request)
        )
        return pb.RotateSigningKeyResponse(key=signing_key_to_pb(made))

    async def RevokeSigningKey(
        self, request: pb.RevokeSigningKeyRequest, context: Context
    ) -> pb.RevokeSigningKeyResponse:
        """See the contract."""
        key_id = fields.request_id_of(request.key_id, "key_id")
        await self._masters.revoke_key(fields.master_id_of(request.master_id), key_id)
        return pb.RevokeSigningKeyResponse()

    async def AuthorizeMaster(
        self, request: pb.AuthorizeMasterRequest, context: Context
    ) -> pb.AuthorizeMasterResponse:
        """See the contract."""
        master_id, key_id, token = claim_from_pb(request)
        return authorization_to_pb(await self._masters.authorize(master_id, key_id, token_sha256(token)))

    def _overlap_of(self, request: pb.RotateSigningKeyRequest) -> timedelta:
        if not request.HasField("overlap"):
            return self._key_overlap
        return convert.timedelta_of(request.overlap, "overlap", low=timedelta(0), high=masters.OVERLAP_MAX)


def new_master_from_pb(request: pb.CreateMasterRequest) -> NewMaster:
    """The master to make.

    Raises:
        InvalidInputError: a field is wrong.
    """
    try:
        account_mode = AccountMode(request.account_mode)
    except ValueError as error:
        raise InvalidInputError.of_field("account_mode", "is neither HEDGING nor NETTING") from error
    return NewMaster(
        owner_user_id=fields.uuid_of(request.owner_user_id, "owner_user_id"),
        display_name=fields.text_of(
            request.display_name, "display_name", characters_max=DISPLAY_NAME_CHARACTERS_MAX
        ),
        account_mode=account_mode,
        signals_per_second_max=fields.between(
            request.signals_per_second_max, 0, masters.SIGNALS_PER_SECOND_MAX, "signals_per_second_max"
        ),
        signal_age_us_max=_signal_age_us_max(request),
    )


def _signal_age_us_max(request: pb.CreateMasterRequest) -> int | None:
    if not request.HasField("signal_age_max"):
        return None
    age = convert.timedelta_of(
        request.signal_age_max, "signal_age_max", low=_SIGNAL_AGE_MIN, high=masters.SIGNAL_AGE_MAX
    )
    return age // timedelta(microseconds=1)


def claim_from_pb(request: pb.AuthorizeMasterRequest) -> tuple[int, str, str]:
    """Master, key and token of a login.

    Raises:
        InvalidInputError: a field is missing or too long.
    """
    token = request.license_token
    if not 1 <= len(token.encode()) <= fields.TOKEN_BYTES_MAX:
        raise InvalidInputError.of_field("license_token", f"is not 1 to {fields.TOKEN_BYTES_MAX} bytes")
    return fields.master_id_of(request.master_id), fields.request_id_of(request.key_id, "key_id"), token


def master_to_pb(master: Master) -> pb.Master:
    """The master as message."""
    message = pb.Master(
        master_id=master.master_id,
        owner_user_id=str(master.owner_user_id),
        display_name=master.display_name,
        account_mode=signal_pb2.AccountMode.ValueType(master.account_mode),
        signals_per_second_max=master.signals_per_second_max,
        created_at=convert.timestamp_to_pb(master.created_at),
    )
    if master.signal_age_us_max is not None:
        seconds, microseconds = divmod(master.signal_age_us_max, 1_000_000)
        message.signal_age_max.CopyFrom(Duration(seconds=seconds, nanos=microseconds * 1_000))
    return message


def signing_key_to_pb(key: SigningKey) -> pb.SigningKey:
    """The key as message."""
    return pb.SigningKey(key_id=key.key_id, secret=key.secret)


def authorization_to_pb(authorization: Authorization) -> pb.AuthorizeMasterResponse:
    """What the session needs, as message."""
    message = pb.AuthorizeMasterResponse(
        master=master_to_pb(authorization.master),
        secret=authorization.secret,
        license_id=str(authorization.license_id),
        expires_at=convert.timestamp_to_pb(authorization.expires_at),
    )
    if authorization.archived != (0, 0):
        message.archived.epoch, message.archived.sequence = authorization.archived
    return message
