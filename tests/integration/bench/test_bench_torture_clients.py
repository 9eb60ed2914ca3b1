"""`ecp torture clients` for a few seconds: every stock client of this machine reads all of a stream, also over TLS."""

from __future__ import annotations

import pytest

from bench.torture.clients import ClientsOptions, torture
from bench.torture.clients_programs import STOCK_CLIENTS
from mesh.errors import MeshError


@pytest.mark.timeout(300)
async def test_every_stock_client_reads_all_of_it_in_plaintext_and_over_tls() -> None:
    told: list[str] = []
    report = await torture(ClientsOptions(seconds=3, signals_per_second=500), told.append)
    assert report.is_sound, "\n".join([*told, *report.summary()])
    # Only what is not Python, and not from our own environment, may be missing.
    assert set(report.skipped) <= {"grpc-js"}
    names = {one.name for one in STOCK_CLIENTS} - set(report.skipped)
    assert {(one.client, one.transport) for one in report.streams} == {
        (name, transport) for name in names for transport in ("plain", "tls")
    }
    assert {(one.signals, one.status) for one in report.streams} == {(1_500, "UNAVAILABLE")}


async def test_a_name_that_is_no_clients_is_refused() -> None:
    with pytest.raises(MeshError, match="no such client: netcat"):
        await torture(ClientsOptions(clients=("netcat",)), print)
