"""Real front door, fan-out and ledger on logs of several shards, clusters and failovers."""

from __future__ import annotations

import uvloop


def pytest_asyncio_loop_factories(config, item):
    # As in production.
    return {"uvloop": uvloop.new_event_loop}
