"""LicenseService over the license store; it is the only place where a token is in the clear."""

from __future__ import annotations

import secrets
from datetime import timedelta

from execution.ledger.v1 import license_service_pb2 as pb
from execution.ledger.v1 import license_service_pb2_grpc
from services.common.rpc import Context
from services.ledger.domain import fields, licenses
from services.ledger.domain.licenses import token_of, token_sha256
from services.ledger.servicer import convert
from services.ledger.store.licenses import Identity, LicenseStore, StoredLicense

REASON_CHARACTERS_MAX = 200
_VALIDITY_MIN = timedelta(seconds=1)


class LicenseServicer(license_service_pb2_grpc.LicenseServiceServicer):
    """See the contract."""

    def __init__(self, store: LicenseStore, *, validity: timedelta, overlap: timedelta) -> None:
        self._licenses = store
        self._validity = validity
        self._overlap = overlap

    async def IssueLicense(
        self, request: pb.IssueLicenseRequest, context: Context
    ) -> pb.IssueLicenseResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        token = token_of(secrets.token_bytes(licenses.TOKEN_RANDOM_BYTES))
        issued = await self._licenses.issue(
            key,
            fields.uuid_of(request.user_id, "user_id"),
            token_sha256=token_sha256(token),
            validity=self._validity_of(request),
        )
        return pb.IssueLicenseResponse(license=license_to_pb(issued), token=token if issued.fresh else "")

    async def Authenticate(
        self, request: pb.AuthenticateRequest, context: Context
    ) -> pb.AuthenticateResponse:
        """See the contract."""
        return identity_to_pb(await self._licenses.authenticate(token_sha256(request.token)))

    async def RotateLicense(
        self, request: pb.RotateLicenseRequest, context: Context
    ) -> pb.RotateLicenseResponse:
        """See the contract."""
        key = convert.key_of(request, fields.request_id_of(request.request_id))
        token = token_of(secrets.token_bytes(licenses.TOKEN_RANDOM_BYTES))
        successor = await self._licenses.rotate(
            key,
            fields.uuid_of(request.license_id, "license_id"),
            token_sha256=token_sha256(token),
            overlap=self._overlap_of(request),
        )
        return pb.RotateLicenseResponse(
            license=license_to_pb(successor), token=token if successor.fresh else ""
        )

    async def RevokeLicense(
        self, request: pb.RevokeLicenseRequest, context: Context
    ) -> pb.RevokeLicenseResponse:
        """See the contract."""
        license_id = fields.uuid_of(request.license_id, "license_id")
        reason = fields.text_of(
            request.reason, "reason", characters_min=0, characters_max=REASON_CHARACTERS_MAX
        )
        return pb.RevokeLicenseResponse(
            license=license_to_pb(await self._licenses.revoke(license_id, reason))
        )

    async def ListLicenses(
        self, request: pb.ListLicensesRequest, context: Context
    ) -> pb.ListLicensesResponse:
        """See the contract."""
        page = await self._licenses.page(fields.uuid_of(request.user_id, "user_id"), convert.page_of(request))
        return pb.ListLicensesResponse(
            licenses=map(license_to_pb, page.items), next_page_token=page.next_token
        )

    def _validity_of(self, request: pb.IssueLicenseRequest) -> timedelta:
        if not request.HasField("validity"):
            return self._validity
        return convert.timedelta_of(
            request.validity, "validity", low=_VALIDITY_MIN, high=licenses.VALIDITY_MAX
        )

    def _overlap_of(self, request: pb.RotateLicenseRequest) -> timedelta:
        if not request.HasField("overlap"):
            return self._overlap
        return convert.timedelta_of(request.overlap, "overlap", low=timedelta(0), high=licenses.OVERLAP_MAX)


def license_to_pb(stored: StoredLicense) -> pb.License:
    """The license as message."""
    one = stored.license
    return pb.License(
        license_id=str(one.license_id),
        user_id=str(one.user_id),
        state=pb.LicenseState.ValueType(stored.state),
        issued_at=convert.timestamp_to_pb(one.issued_at),
        expires_at=convert.timestamp_to_pb(one.expires_at),
        revoked_at=convert.optional_timestamp_to_pb(one.revoked_at),
        rotated_from=str(one.rotated_from or ""),
    )


def identity_to_pb(identity: Identity) -> pb.AuthenticateResponse:
    """Who shows a token, as message."""
    return pb.AuthenticateResponse(
        user_id=str(identity.user_id),
        license_id=str(identity.license_id),
        expires_at=convert.timestamp_to_pb(identity.expires_at),
        entitlements=(
            pb.Entitlement(
                subscription_id=str(one.subscription_id),
                master_id=one.master_id,
                pause=pb.PauseScope.ValueType(one.pause),
                version=one.version,
                full_sync_due=one.full_sync_due,
            )
            for one in identity.entitlements
        ),
    )
