"""Keeps open sessions to their licenses: follows what the ledger announces, and looks again now and then; no logins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final, cast

from google.protobuf.message import DecodeError

from execution.ingest.v1 import frames_pb2 as pb
from execution.ledger.v1 import events_pb2
from services.common import stream, tail
from services.common.errors import UnavailableError
from services.common.stream import Redis
from services.ingest.domain.values import Authorisation
from services.ingest.peer import Door, Peer

_log = logging.getLogger(__name__)

_RECHECKS_AT_ONCE: Final = 16


class LicenseWatch:
    """Ends the sessions whose license or key no longer counts."""

    def __init__(self, door: Door, client: Redis) -> None:
        self._door = door
        self._client = client
        self.is_following = False
        """Whether changes are heard as they are announced."""

    async def follow(self) -> None:
        """Follows `ledger:events` until cancelled."""
        following = tail.tail(self._client, stream.LEDGER_EVENTS, await self._begin())
        async with aclosing(cast(AsyncGenerator[tail.Event, None], following)) as events:
            async for event in events:
                self.is_following = not isinstance(event, tail.Disconnected)
                match event:
                    case tail.Entries(entries=entries):
                        for entry in entries:
                            self._take(entry)
                    case tail.Connected() | tail.Trimmed() | tail.Restored():
                        # Something may have been announced that we did not hear.
                        self._door.authoriser.doubt_all()
                        await self.recheck()

    async def recheck_regularly(self) -> None:
        """Asks the ledger about each open session now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._door.settings.recheck_seconds)
            await self.recheck()

    async def recheck(self) -> None:
        """Asks the ledger about each open session."""
        slots = asyncio.Semaphore(_RECHECKS_AT_ONCE)

        async def check(peer: Peer) -> None:
            async with slots:
                await peer.recheck()

        await asyncio.gather(*(check(peer) for peer in self._door.sessions.all()))

    async def _begin(self) -> stream.EntryId:
        """The end of the stream as it is now; what came before is in the ledger's answers."""
        while True:
            try:
                return await stream.last_id(self._client, stream.LEDGER_EVENTS)
            except UnavailableError:
                await asyncio.sleep(0.2)

    def _take(self, entry: stream.Entry) -> None:
        try:
            event = events_pb2.LedgerEvent.FromString(entry.payload or b"")
        except DecodeError:
            _log.error("entry %s of %s is not a LedgerEvent", entry.id, stream.LEDGER_EVENTS)
            return
        kind = event.WhichOneof("event")
        if kind == "license_changed":
            self._license_changed(event.license_changed)
        elif kind == "signing_key_changed":
            self._key_changed(event.signing_key_changed)

    def _license_changed(self, change: events_pb2.LicenseChanged) -> None:
        self._door.authoriser.forget_license(change.license_id)
        for peer in self._door.sessions.all():
            authorisation = peer.session.handshake.authorisation
            if authorisation is None or authorisation.license_id != change.license_id:
                continue
            if change.revoked:
                peer.end(pb.REJECT_CODE_LICENSE_REVOKED, "the license was revoked")
            elif change.HasField("expires_at"):
                _end_by(peer, authorisation, change.expires_at.ToMicroseconds())
                # It may also be longer now, and then the key's own end counts: only the ledger knows both.
                self._door.start(peer.recheck(), f"recheck of master {peer.master_id}")

    def _key_changed(self, change: events_pb2.SigningKeyChanged) -> None:
        self._door.authoriser.forget_key(change.master_id, change.key_id)
        peer = self._door.sessions.find(change.master_id)
        if peer is None or peer.session.handshake.key_id != change.key_id:
            return
        authorisation = peer.session.handshake.authorisation
        if change.revoked:
            peer.end(pb.REJECT_CODE_LICENSE_REVOKED, "the signing key was revoked")
        elif authorisation is not None and change.HasField("expires_at"):
            _end_by(peer, authorisation, change.expires_at.ToMicroseconds())


def _end_by(peer: Peer, authorisation: Authorisation, time_us: int) -> None:
    """The session ends at that time at the latest."""
    expires_at_us = min(authorisation.expires_at_us, time_us)
    peer.session.handshake.authorisation = replace(authorisation, expires_at_us=expires_at_us)
