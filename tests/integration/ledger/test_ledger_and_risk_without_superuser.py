"""Ledger and risk as deployments run them: migrated by an owner who is no superuser, each with a login of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from execution.risk.v1 import risk_service_pb2 as risk_pb
from mesh.embedded import postgres
from services.common import migrations, stream
from services.common.errors import UnavailableError
from services.ledger import app as ledger_app
from services.risk import app as risk_app
from tests.integration.ledger.ledger_service import (
    append,
    ledger_running,
    ledger_settings,
    refused,
    superuser,
)
from tests.integration.ledger.log_entries import run
from tests.integration.risk.risk_service import outcome, risk_running, risk_settings
from tests.integration.risk.stand_in_ledger import standing_in

OWNER = "schema_owner"
LOGINS = {"ledger_login": "ledger_service", "risk_login": "risk_service"}


@pytest.fixture
async def deployed() -> AsyncIterator[str]:
    """A superuser's URL of a server on which nobody but the migrations' owner made anything."""
    async with postgres(durable=False) as server:
        async with superuser(server.url) as connection:
            await connection.execute(f"create role {OWNER} login createrole")
            await connection.execute(f"create database execution_control owner {OWNER}")
        url = server.url.replace("/postgres?", "/execution_control?")
        for app in (ledger_app, risk_app):
            await migrations.apply(as_login(url, OWNER), app.MIGRATIONS, schema=app.SCHEMA)
        async with superuser(as_login(url, OWNER)) as connection:
            for login, role in LOGINS.items():
                await connection.execute(f"create role {login} login in role {role}")
        yield url


def as_login(url: str, login: str) -> str:
    return url.replace("postgres@", f"{login}@")


async def test_both_work_under_logins_that_may_do_no_more_than_their_roles(
    deployed: str, redis_url: str, redis: stream.Redis
) -> None:
    async with ledger_running(ledger_settings(as_login(deployed, "ledger_login"), redis_url)) as ledger:
        await ledger.license(await ledger.user())
        await append(redis, run(7, 1, 2))
        await ledger.archived(2)
    async with (
        standing_in() as peer,
        risk_running(risk_settings(as_login(deployed, "risk_login"), peer.port)) as risk,
    ):
        await risk.until_first_check()
        assert (await risk.report(peer.add_user().token, outcome(1))).stored == 1
        await risk.call("RunCheck", risk_pb.RunCheckRequest())


async def test_a_login_that_may_not_act_as_the_role_is_told_so(deployed: str, redis_url: str) -> None:
    async with superuser(as_login(deployed, OWNER)) as connection:
        await connection.execute("create role outsider login")
    async with ledger_running(ledger_settings(as_login(deployed, "outsider"), redis_url)) as ledger:
        error = await refused(ledger.user())
        assert (type(error), error.reason) == (UnavailableError, "DATABASE_REFUSED")
        async with superuser(as_login(deployed, OWNER)) as connection:
            await connection.execute("grant ledger_service to outsider")
        assert (await ledger.user()).user_id


FORBIDDEN = [
    ("ledger_login", "select * from risk.trust_state"),
    ("ledger_login", "select * from risk.signal_stats"),
    ("ledger_login", "select risk.drop_chunks('risk.outcomes', interval '30 days')"),
    ("risk_login", "select * from ledger.users"),
    ("risk_login", "select * from ledger.licenses"),
    ("risk_login", "select ledger.drop_chunks('ledger.signal_archive', interval '180 days')"),
    ("ledger_login", "set role ledger_owner"),
    ("risk_login", "set role risk_owner"),
    ("ledger_login", "set role risk_service"),
    ("risk_login", "create table risk.anything (number int)"),
]


async def test_a_login_reaches_nothing_of_the_other_service_and_no_owner(deployed: str) -> None:
    for login, statement in FORBIDDEN:
        async with superuser(as_login(deployed, login)) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
