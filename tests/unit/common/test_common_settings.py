from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import SecretStr, ValidationError

from services.common import settings
from services.common.errors import ConfigurationError
from services.common.settings import Address, CommaSeparated, ServiceSettings

TOKEN = "a-token-of-a-good-length"


class ExampleSettings(ServiceSettings):
    service_name: ClassVar[str] = "example"

    key_encryption_key: SecretStr | None = None
    names: CommaSeparated = ()
    check_interval_seconds: int = 300


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().removesuffix("_file") in ExampleSettings.model_fields:
            monkeypatch.delenv(name)
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)


def test_defaults_are_those_that_the_operators_guide_names() -> None:
    loaded = settings.load(ExampleSettings)
    assert str(loaded.grpc_bind_address) == "0.0.0.0:50051"
    assert str(loaded.admin_bind_address) == "0.0.0.0:9090"
    assert loaded.log_level == "INFO"


def test_environment_sets_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_BIND_ADDRESS", "[::1]:7000")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("NAMES", "a, b,,c")
    loaded = settings.load(ExampleSettings)
    assert loaded.grpc_bind_address == Address("::1", 7000)
    assert loaded.log_level == "DEBUG"
    assert loaded.names == ("a", "b", "c")


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_BIND_ADDRESS", "127.0.0.1:1")
    assert settings.load(ExampleSettings, grpc_bind_address="127.0.0.1:2").grpc_bind_address.port == 2


def test_settings_do_not_change() -> None:
    loaded = settings.load(ExampleSettings)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.log_level = "DEBUG"


def test_secrets_come_from_files_without_the_last_newline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("another-token-of-good-length\n")
    (tmp_path / "url").write_text("postgresql://u:secret@h/db\r\n")
    monkeypatch.delenv("SERVICE_TOKEN")
    monkeypatch.setenv("SERVICE_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "url"))
    loaded = settings.load(ExampleSettings)
    assert loaded.service_token.get_secret_value() == "another-token-of-good-length"
    assert settings.require_secret(loaded.database_url, "DATABASE_URL") == "postgresql://u:secret@h/db"


def test_a_secret_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("SERVICE_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ConfigurationError, match=r"SERVICE_TOKEN_FILE and SERVICE_TOKEN.*keep only one"):
        settings.load(ExampleSettings)


def test_an_unreadable_secret_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPERATOR_TOKEN_FILE", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match=r"OPERATOR_TOKEN_FILE: cannot read .*missing: No such file"):
        settings.load(ExampleSettings)


def test_an_endless_secret_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_TOKEN_FILE", "/dev/zero")
    with pytest.raises(ConfigurationError, match="OPERATOR_TOKEN_FILE: /dev/zero is larger than"):
        settings.load(ExampleSettings)


def test_a_binary_secret_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("OPERATOR_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        settings.load(ExampleSettings)


def test_each_bad_variable_gets_one_line_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICE_TOKEN")
    monkeypatch.setenv("GRPC_BIND_ADDRESS", "nonsense")
    monkeypatch.setenv("OPERATOR_TOKEN", "short-secret")
    monkeypatch.setenv("CHECK_INTERVAL_SECONDS", "soon")
    with pytest.raises(ConfigurationError) as caught:
        settings.load(ExampleSettings)
    lines = caught.value.message.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "CHECK_INTERVAL_SECONDS",
        "GRPC_BIND_ADDRESS",
        "OPERATOR_TOKEN",
        "SERVICE_TOKEN",
    ]
    assert "short-secret" not in caught.value.message


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"OPERATOR_TOKEN": TOKEN}, "OPERATOR_TOKEN and SERVICE_TOKEN must differ"),
        ({"TLS_KEY_FILE": "/k"}, "TLS_CERTIFICATE_FILE and TLS_KEY_FILE must be given together"),
        ({"TLS_CLIENT_CA_FILE": "/c"}, "TLS_CLIENT_CA_FILE needs"),
        (
            {"DATABASE_POOL_SIZE_MIN": "5", "DATABASE_POOL_SIZE_MAX": "4"},
            "DATABASE_POOL_SIZE_MIN must not exceed",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=line):
        settings.load(ExampleSettings)


def test_a_needed_secret_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL: is not set; set REDIS_URL or REDIS_URL_FILE"):
        settings.require_secret(None, "REDIS_URL")


def test_secrets_are_not_in_the_text_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@h/db")
    loaded = settings.load(ExampleSettings)
    assert "hunter2" not in repr(loaded)
    assert TOKEN not in repr(loaded)


@pytest.mark.parametrize("text", ["host", "host:", "host:x", "host:70000", "::1:80", "host:-1", "host:٣"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port|brackets"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.9.9.9", True),
        ("::1", True),
        ("0:0:0:0:0:0:0:1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        # A name, whatever it stands for.
        ("127.example.com", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback is is_loopback


def test_address_parts() -> None:
    assert Address.parse(":80") == Address("0.0.0.0", 80)
    assert Address.parse("[::1]:80").host == "::1"
    assert Address("127.0.0.1", 0).with_port(9) == Address("127.0.0.1", 9)
    with pytest.raises(AttributeError):
        Address("h", 1).port = 2
