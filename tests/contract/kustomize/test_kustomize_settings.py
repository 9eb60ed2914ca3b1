"""The environment that the manifests give each process, against the settings that the process reads from it."""

from __future__ import annotations

import base64
import importlib
import os
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from services.common.settings import ServiceSettings, load

Manifest = dict[str, Any]
Named = dict[str, dict[str, Manifest]]

PROCESSES = {
    "ingest": "ingest",
    "fanout": "fanout",
    "ledger": "ledger",
    "risk": "risk",
    "migrate-ledger": "ledger",
    "migrate-risk": "risk",
}
"""Each workload and the service whose settings it reads."""

SECRETS = {
    "DATABASE_URL": "postgresql://ledger_login:secret@postgres.example.com/execution_control",
    "MIGRATION_DATABASE_URL": "postgresql://owner:secret@postgres.example.com/execution_control",
    "REDIS_URL": "rediss://:secret@redis.example.com:6379/0",
    "SERVICE_TOKEN": "service-token-of-the-tests",
    "OPERATOR_TOKEN": "operator-token-of-the-tests",
    "KEY_ENCRYPTION_KEY": base64.b64encode(bytes(range(32))).decode(),
}


def _settings_class(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"services.{service}.settings")
    own = [value for value in vars(module).values() if getattr(value, "service_name", None) == service]
    (settings_class,) = own
    assert issubclass(settings_class, ServiceSettings)
    return settings_class


def _environment(named: Named, workload: str) -> dict[str, str]:
    manifest = (named["Deployment"] | named["Job"])[workload]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        values |= named["ConfigMap"][source["configMapRef"]["name"]]["data"]
    return values | {variable["name"]: variable["value"] for variable in container["env"]}


def _secret_fields(settings_class: type[ServiceSettings]) -> set[str]:
    return {
        name.upper()
        for name, field in settings_class.model_fields.items()
        if field.annotation is SecretStr or SecretStr in get_args(field.annotation)
    }


def _unknown(variables: set[str], settings_class: type[ServiceSettings]) -> set[str]:
    """The variables that no field of the settings is read from."""
    fields = {name.upper() for name in settings_class.model_fields}
    return variables - fields - {f"{name}_FILE" for name in _secret_fields(settings_class)}


@pytest.mark.parametrize("workload", PROCESSES)
def test_every_variable_is_a_field_of_the_settings(named: Named, workload: str) -> None:
    assert _unknown(set(_environment(named, workload)), _settings_class(PROCESSES[workload])) == set()


def test_a_misspelt_or_foreign_variable_is_noticed() -> None:
    wrong = {"CHECK_INTERVALL_SECONDS", "KEY_ENCRYPTION_KEY_FILE", "LOG_LEVEL_FILE"}
    right = {"CHECK_INTERVAL_SECONDS", "SERVICE_TOKEN_FILE", "LOG_LEVEL"}
    assert _unknown(wrong | right, _settings_class("risk")) == wrong


@pytest.mark.parametrize("workload", PROCESSES)
def test_no_secret_field_is_given_as_plain_text(named: Named, workload: str) -> None:
    secrets = _secret_fields(_settings_class(PROCESSES[workload]))
    assert secrets & set(_environment(named, workload)) == set()


@pytest.mark.parametrize("workload", PROCESSES)
def test_the_settings_load_from_the_environment_that_the_pod_gets(
    named: Named, workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_class = _settings_class(PROCESSES[workload])
    monkeypatch.setattr(os, "environ", {})
    for variable, value in _environment(named, workload).items():
        secret = variable.removesuffix("_FILE")
        if secret in SECRETS and secret != variable:
            (tmp_path / secret).write_text(f"{SECRETS[secret]}\n")
            value = str(tmp_path / secret)
        os.environ[variable] = value
    loaded = load(settings_class)
    for variable, expected in SECRETS.items():
        if f"{variable}_FILE" in os.environ:
            assert getattr(loaded, variable.lower()).get_secret_value() == expected
