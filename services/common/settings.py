"""What every service reads from its environment, checked once at start; it opens no connection."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.common.auth import TOKEN_CHARACTERS_MAX
from services.common.errors import ConfigurationError

SECRET_FILE_BYTES_MAX = 65_536
_TOKEN_CHARACTERS_MIN = 16


class Address:
    """A host and a port: `host:port`, `[v6]:port` or `:port` (all interfaces). Port 0 means any free one."""

    __slots__ = ("host", "port")

    host: str
    port: int

    def __init__(self, host: str, port: int) -> None:
        if not 0 <= port <= 65_535:
            raise ValueError(f"port {port} is not in 0..65535")
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "port", port)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `host:port`.

        Raises:
            ValueError: no port, a port out of range, or an IPv6 address without brackets.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r} is not host:port")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, [address]:port")
        return cls(host or "0.0.0.0", int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> Address:
        """The same host with another port."""
        return Address(self.host, port)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an Address does not change")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Lets a settings field of this type be given as text."""
        return core_schema.no_info_plain_validator_function(cls._validate)

    @classmethod
    def _validate(cls, value: object) -> Address:
        if isinstance(value, Address):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        raise ValueError("expected host:port")


def _split_on_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(_split_on_commas)]
"""A settings field that holds texts separated by commas."""


class ServiceSettings(BaseSettings):
    """The settings common to all services, from environment variables of the same names in upper case.

    Every secret `NAME` can instead be given as `NAME_FILE`, the path of a file whose content (without the
    last newline) is the value; giving both is an error. Build it with `load` so that mistakes become one
    clear line each.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", enable_decoding=False, hide_input_in_errors=True
    )

    service_name: ClassVar[str] = "service"

    grpc_bind_address: Address = Address("0.0.0.0", 50051)
    admin_bind_address: Address = Address("0.0.0.0", 9090)
    health_bind_address: Address | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
    database_role: str | None = Field(default=None, min_length=1, max_length=63)
    database_pool_size_min: int = Field(default=1, ge=0, le=1_000)
    database_pool_size_max: int = Field(default=10, ge=1, le=1_000)
    database_acquire_timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    database_command_timeout_seconds: float = Field(default=30.0, gt=0, le=86_400)

    redis_url: SecretStr | None = None
    redis_timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    redis_connections_max: int = Field(default=32, ge=1, le=10_000)
    """Of each shard of the log, and of the ledger's events."""
    log_shards: int = Field(default=1, ge=1, le=64)
    """Of how many shards the signal log is: the same in every process, and fixed for the life of the log."""

    service_token: SecretStr
    operator_token: SecretStr | None = None

    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    tls_ca_file: Path | None = None

    grpc_message_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1_024, le=256 * 1024 * 1024)
    grpc_concurrent_rpcs_max: int = Field(default=20_000, ge=1, le=10_000_000)
    grpc_unary_deadline_seconds: float = Field(default=30.0, gt=0, le=3_600)
    grpc_connection_age_seconds_max: float | None = Field(default=None, gt=0, le=31_536_000)
    peer_call_timeout_seconds: float = Field(default=5.0, gt=0, le=600)
    drain_grace_seconds: float = Field(default=10.0, ge=0, le=600)
    health_tick_age_seconds_max: float = Field(default=10.0, gt=0, le=600)

    otel_exporter_otlp_endpoint: str | None = None

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_level(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("service_token", "operator_token")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < _TOKEN_CHARACTERS_MIN:
            raise ValueError(
                f"needs at least {_TOKEN_CHARACTERS_MIN} characters, for example from: openssl rand -hex 32"
            )
        if token is not None and not _can_be_sent(token.get_secret_value()):
            raise ValueError(
                f"needs one line of at most {TOKEN_CHARACTERS_MAX} printable ASCII characters, no blanks around it"
            )
        return token

    @model_validator(mode="after")
    def _consistent(self) -> ServiceSettings:
        if self.operator_token is not None and self.operator_token == self.service_token:
            raise ValueError("OPERATOR_TOKEN and SERVICE_TOKEN must differ")
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS_CERTIFICATE_FILE and TLS_KEY_FILE must be given together")
        if self.tls_client_ca_file is not None and self.tls_certificate_file is None:
            raise ValueError("TLS_CLIENT_CA_FILE needs TLS_CERTIFICATE_FILE and TLS_KEY_FILE")
        if self.database_pool_size_min > self.database_pool_size_max:
            raise ValueError("DATABASE_POOL_SIZE_MIN must not exceed DATABASE_POOL_SIZE_MAX")
        return self

    @property
    def shares_ports(self) -> bool:
        """Whether other processes of the service listen on the same ports; see services.common.worker."""
        return False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the files that NAME_FILE variables name."""
        return init_settings, env_settings, _SecretFiles(settings_cls)


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load(settings_class: type[SettingsT], **overrides: object) -> SettingsT:
    """Reads the settings from the environment; `overrides` win over it.

    Raises:
        ConfigurationError: one line for each variable that is missing or wrong; values are never in it.
    """
    try:
        return settings_class(**overrides)  # type: ignore[arg-type]  # pydantic checks the overrides at run time
    except ValidationError as error:
        raise ConfigurationError.of_lines(
            _line(detail) for detail in error.errors(include_input=False)
        ) from None


def require_secret(value: SecretStr | None, variable: str) -> str:
    """The text of a secret or URL that this service cannot do without.

    Raises:
        ConfigurationError: it is not set.
    """
    if value is None or not value.get_secret_value():
        raise ConfigurationError("is not set", where=variable, do=f"set {variable} or {variable}_FILE")
    return value.get_secret_value()


def _can_be_sent(token: str) -> bool:
    """Whether a call's metadata can carry it and the server that reads it there finds the same."""
    printable = token.isascii() and token.isprintable() and token == token.strip()
    return printable and len(token) <= TOKEN_CHARACTERS_MAX


def _line(detail: Any) -> str:
    variable = ".".join(str(part) for part in detail["loc"][:1]).upper()
    if detail["type"] == "missing":
        return (
            f"{variable}: is not set; set it, or for a secret {variable}_FILE to the path of a file with it"
        )
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{variable}: {message}" if variable else message


class _SecretFiles(PydanticBaseSettingsSource):
    """Values of secret fields from the files that NAME_FILE variables name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The file's content, or None when there is no NAME_FILE variable."""
        variable = field_name.upper()
        path = os.environ.get(f"{variable}_FILE")
        if not path or not _is_secret(field):
            return None, field_name, False
        if os.environ.get(variable):
            raise ConfigurationError(
                "is set as well", where=f"{variable}_FILE and {variable}", do="keep only one of them"
            )
        return _read_secret(Path(path), f"{variable}_FILE"), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All values found in files, by field name."""
        values: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            value, key, _ = self.get_field_value(field, name)
            if value is not None:
                values[key] = value
        return values


def _is_secret(field: FieldInfo) -> bool:
    annotation = field.annotation
    return annotation is SecretStr or SecretStr in get_args(annotation)


def _read_secret(path: Path, variable: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
        if len(content) > SECRET_FILE_BYTES_MAX:
            raise ConfigurationError(f"{path} is larger than {SECRET_FILE_BYTES_MAX} bytes", where=variable)
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise ConfigurationError(
            f"cannot read {path}: {reason}", where=variable, do="check path and permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text", where=variable) from error
