"""The settings of the ledger that depend on one another."""

from __future__ import annotations

import pytest

from services.common import settings as common_settings
from services.common.errors import ConfigurationError
from services.ledger.settings import LedgerSettings


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "a token that is long enough")


def test_leading_every_shard_leaves_connections_for_calls() -> None:
    assert common_settings.load(LedgerSettings, log_shards=13).log_shards == 13
    with pytest.raises(ConfigurationError, match="DATABASE_POOL_SIZE_MAX must be LOG_SHARDS and 3 more"):
        common_settings.load(LedgerSettings, log_shards=14)
    assert common_settings.load(LedgerSettings, log_shards=14, database_pool_size_max=17).log_shards == 14


def test_the_log_keeps_an_hour_unless_told_otherwise() -> None:
    loaded = common_settings.load(LedgerSettings)
    assert (loaded.log_retention_seconds, loaded.log_trim_interval_seconds) == (3_600, 10)
