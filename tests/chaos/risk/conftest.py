"""The stand-in for ledger, as in the integration tests."""

from __future__ import annotations

from tests.integration.risk.conftest import ledger

__all__ = ["ledger"]
