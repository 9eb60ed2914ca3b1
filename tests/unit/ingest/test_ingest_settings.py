"""The settings of the front door."""

from __future__ import annotations

import pytest

from execution.common.v1 import position_pb2
from services.common import settings as common_settings
from services.common.errors import ConfigurationError
from services.ingest.domain.values import Limits
from services.ingest.settings import IngestSettings

TOKEN = "a token that is long enough"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DURABILITY", "SIGNAL_WINDOW", "OUTSTANDING_BYTES_MAX", "BIND_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)


def test_sessions_are_held_to_the_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIGNAL_WINDOW", "77")
    monkeypatch.setenv("DURABILITY", "FSYNCED")
    limits = common_settings.load(IngestSettings, heartbeat_seconds=0.5).limits()
    assert (limits.window, limits.heartbeat_ms) == (77, 500)
    assert limits.durability == position_pb2.DURABILITY_FSYNCED


def test_the_defaults_are_those_of_the_protocol():
    assert common_settings.load(IngestSettings).limits() == Limits()
    assert str(common_settings.load(IngestSettings).bind_address) == "0.0.0.0:9000"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DURABILITY", "HOPEFUL"),
        ("SIGNAL_WINDOW", "0"),
        ("BIND_ADDRESS", "9000"),
        ("OUTSTANDING_BYTES_MAX", "5"),
        ("LOG_SHARDS", "0"),
        ("LOG_SHARDS", "65"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        common_settings.load(IngestSettings)


def test_what_may_be_under_way_is_divided_among_the_shards():
    loaded = common_settings.load(IngestSettings, log_shards=4)
    assert loaded.shard_outstanding_bytes_max == loaded.outstanding_bytes_max // 4
    loaded = common_settings.load(IngestSettings, log_shards=64)
    # A session of the largest size fits into each of them.
    assert loaded.shard_outstanding_bytes_max == loaded.session_outstanding_bytes_max


def test_one_session_may_not_have_more_under_way_than_all():
    with pytest.raises(ConfigurationError, match="SESSION_OUTSTANDING_BYTES_MAX"):
        common_settings.load(
            IngestSettings, outstanding_bytes_max=131_072, session_outstanding_bytes_max=200_000
        )
