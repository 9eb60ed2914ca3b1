"""The fixtures of the integration tests: contract tests call the same running service."""

from __future__ import annotations

from tests.integration.risk.conftest import ledger, risk

__all__ = ["ledger", "risk"]
