"""No number is taken from the environment without a bound: what is beyond it is told at start, not met at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common import settings as common_settings
from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings
from services.fanout.settings import FanoutSettings
from services.ingest.settings import IngestSettings
from services.ledger.settings import LedgerSettings
from services.risk.settings import RiskSettings

BEYOND_ALL = "9" * 25
SERVICES: list[type[ServiceSettings]] = [FanoutSettings, IngestSettings, LedgerSettings, RiskSettings]
NUMBERS = [
    pytest.param(service, name, id=f"{service.service_name}-{name}")
    for service in SERVICES
    for name, field in service.model_fields.items()
    if field.annotation in (int, float, int | None, float | None)
]


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "a token that is long enough")


@pytest.mark.parametrize("value", ["", "-1", "nan", "inf", "many", BEYOND_ALL])
@pytest.mark.parametrize(("service", "name"), NUMBERS)
def test_a_number_that_cannot_be_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, service: type[ServiceSettings], name: str, value: str
) -> None:
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError, match=f"^{name.upper()}: "):
        common_settings.load(service)


@pytest.mark.parametrize(
    "token",
    [
        "a token of two lines\nof a file",
        "a token whose file ends with a blank line\n",
        "\ufeffa token behind a byte order mark",
        " a token behind a blank",
        "a token with a\0 byte of zero",
        "ein Token mit einem schönen Umlaut",
        "a token beyond what a server reads".ljust(5_000, "."),
    ],
)
@pytest.mark.parametrize("variable", ["SERVICE_TOKEN", "OPERATOR_TOKEN"])
def test_a_token_that_no_call_can_carry_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, token: str
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{token}\n", encoding="utf-8")
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(f"{variable}_FILE", str(file))
    with pytest.raises(ConfigurationError, match=f"^{variable}: ") as refused:
        common_settings.load(LedgerSettings)
    assert "a token" not in str(refused.value)


def test_an_empty_role_does_not_turn_roles_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_ROLE", "")
    with pytest.raises(ConfigurationError, match=r"^DATABASE_ROLE: "):
        common_settings.load(LedgerSettings)
