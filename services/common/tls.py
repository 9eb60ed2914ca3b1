"""TLS for gRPC servers and clients from PEM files, re-read when they change; it speaks no protocol itself."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import grpc
from prometheus_client import Gauge

from services.common.errors import ConfigurationError
from services.common.settings import ServiceSettings

_log = logging.getLogger(__name__)

PEM_BYTES_MAX = 1_048_576
# Or OpenSSL would ask for a passphrase at the terminal, and the service stand still.
_NO_PASSPHRASE = ""

EXPIRES: Final = Gauge(
    "tls_certificate_expires_timestamp_seconds",
    "When the certificate that the server shows, or the first of those that came with it, ends.",
    ("file",),
)

Stamp = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The PEM files of a server; with `client_ca` clients must show a certificate that this CA signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> Stamp:
        """What changes when one of the files does."""
        return tuple(
            None if path is None else _stamp(path) for path in (self.certificate, self.key, self.client_ca)
        )


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """The PEM files of a client: who vouches for servers and, for mutual TLS, its own certificate."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None


def server_files(settings: ServiceSettings) -> ServerFiles | None:
    """The server's files, or None for plaintext."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return ServerFiles(settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file)


def client_files(settings: ServiceSettings) -> ClientFiles | None:
    """The client's files, or None for plaintext."""
    if settings.tls_ca_file is None:
        return None
    return ClientFiles(settings.tls_ca_file, settings.tls_certificate_file, settings.tls_key_file)


def load_certificate(context: ssl.SSLContext, files: ServerFiles) -> None:
    """Has the context show the server's certificate.

    Raises:
        ConfigurationError: a file cannot be read, or they cannot be used together.
    """
    for path in (files.certificate, files.key):
        read_pem(path)
    try:
        context.load_cert_chain(files.certificate, files.key, _NO_PASSPHRASE)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"cannot use {files.certificate} with {files.key}: they do not fit, or the key has a passphrase",
            where="TLS_CERTIFICATE_FILE",
            do="check the TLS_..._FILE settings",
        ) from error
    _tell_expiry(files.certificate)


def server_credentials(files: ServerFiles) -> grpc.ServerCredentials:
    """Credentials that re-read the files when they changed; broken new files keep the old ones in use.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    reloading = _Reloading(files)
    # gRPC's own contract lets the fetcher return None (nothing new); its stubs do not know.
    fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", reloading.fetch)
    return grpc.dynamic_ssl_server_credentials(reloading.initial, fetch, files.client_ca is not None)


def channel_credentials(files: ClientFiles) -> grpc.ChannelCredentials:
    """Credentials as the files are now; a channel keeps them for its life.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    certificate = None if files.certificate is None else read_pem(files.certificate)
    key = None if files.key is None else read_pem(files.key)
    return grpc.ssl_channel_credentials(read_pem(files.ca), key, certificate)


class _Reloading:
    """Gives handshakes a new configuration when a file changed; gRPC calls it from its own threads."""

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._stamp = files.stamp()
        self.initial = self._configuration()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration, or None to keep the one in use."""
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            configuration = self._configuration()
        except ConfigurationError as error:
            _log.error("certificate not reloaded, the old one stays in use: %s", error.message)
            return None
        _log.info("certificate reloaded from %s", self._files.certificate)
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain = [(read_pem(self._files.key), read_pem(self._files.certificate))]
        client_ca = None if self._files.client_ca is None else read_pem(self._files.client_ca)
        _tell_expiry(self._files.certificate)
        return grpc.ssl_server_certificate_configuration(chain, client_ca)


def _tell_expiry(path: Path) -> None:
    """Sets the metric of a certificate that is in use from now on."""
    # Not at the top: it takes memory that a process without TLS need not have.
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(read_pem(path))
    except (ConfigurationError, ValueError) as error:
        _log.warning("cannot tell when %s ends: %s", path, error)
        return
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    EXPIRES.labels(str(path)).set(ends.timestamp())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def read_pem(path: Path) -> bytes:
    """The content of a PEM file.

    Raises:
        ConfigurationError: it cannot be read, or is not PEM.
    """
    try:
        with path.open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read: {error.strerror}", where=str(path), do="check the TLS_..._FILE settings"
        ) from error
    if b"-----BEGIN" not in content or len(content) > PEM_BYTES_MAX:
        raise ConfigurationError("is not a PEM file", where=str(path), do="check the TLS_..._FILE settings")
    return content
