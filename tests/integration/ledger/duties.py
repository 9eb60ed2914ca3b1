"""What tests of the ledger's duties do again and again: make an event, see what was told, ask the admin port."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

from execution.ledger.v1 import events_pb2
from execution.ledger.v1 import license_service_pb2 as licenses
from execution.ledger.v1 import user_service_pb2 as users
from tests.integration.ledger.ledger_service import (
    LedgerClient,
    events_in,
    eventually,
)


async def revoked(ledger: LedgerClient, user: users.User) -> str:
    """Makes one event; the license it is about."""
    issued = await ledger.license(user)
    await ledger.call(
        "LicenseService/RevokeLicense", licenses.RevokeLicenseRequest(license_id=issued.license.license_id)
    )
    return issued.license.license_id


async def told(redis_url: str, count: int) -> list[events_pb2.LedgerEvent]:
    async def enough() -> list[events_pb2.LedgerEvent]:
        found = await events_in(redis_url)
        return found if len({event.event_id for event in found}) >= count else []

    return await eventually(enough)


def admin(ledger: LedgerClient, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{ledger.running.admin_port}{path}", timeout=5
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def checks(ledger: LedgerClient) -> dict[str, bool]:
    return json.loads((await asyncio.to_thread(admin, ledger, "/ready"))[1])["checks"]
