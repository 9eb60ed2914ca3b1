"""The same fan-out as the integration tests', over both edges."""

from __future__ import annotations

from tests.integration.fanout.conftest import edge, fanout, ledger, log, redis_client

__all__ = ["edge", "fanout", "ledger", "log", "redis_client"]
