from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client import REGISTRY

from services.common.errors import ConfigurationError
from services.common.h2grpc.certificates import Certificates
from services.common.tls import ServerFiles, load_certificate, server_credentials


@pytest.fixture
def files(tmp_path: Path) -> ServerFiles:
    certificate = trustme.CA().issue_cert("localhost")
    files = ServerFiles(tmp_path / "server.pem", tmp_path / "server.key")
    certificate.private_key_pem.write_to_path(str(files.key))
    certificate.cert_chain_pems[0].write_to_path(str(files.certificate))
    return files


def lock(key: Path) -> None:
    private = load_pem_private_key(key.read_bytes(), None)
    locked = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, locked))


def test_a_key_with_a_passphrase_is_refused_for_streams_and_masters_alike(files: ServerFiles) -> None:
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    lock(files.key)
    with pytest.raises(ConfigurationError, match="the key has a passphrase"):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    with pytest.raises(ConfigurationError, match="the key has a passphrase"):
        Certificates(files)


def test_what_is_no_ca_is_named(files: ServerFiles) -> None:
    no_ca = files.key.with_name("ca.pem")
    no_ca.write_bytes(files.key.read_bytes())
    with_ca = ServerFiles(files.certificate, files.key, no_ca)
    with pytest.raises(ConfigurationError, match=r"TLS_CLIENT_CA_FILE: cannot use .*ca\.pem"):
        Certificates(with_ca)


def test_a_certificate_of_another_key_is_refused(files: ServerFiles) -> None:
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(files.key))
    with pytest.raises(ConfigurationError, match="they do not fit"):
        Certificates(files)


def ends_at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def told(files: ServerFiles) -> float | None:
    return REGISTRY.get_sample_value(
        "tls_certificate_expires_timestamp_seconds", {"file": str(files.certificate)}
    )


def renew(files: ServerFiles, not_after: datetime) -> None:
    certificate = trustme.CA().issue_cert("localhost", not_after=not_after)
    certificate.private_key_pem.write_to_path(str(files.key))
    certificate.cert_chain_pems[0].write_to_path(str(files.certificate))


def test_when_a_certificate_ends_is_told_once_it_is_in_use(files: ServerFiles) -> None:
    assert told(files) is None
    renew(files, ends_at(2_000_000_000))
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    assert told(files) == 2_000_000_000
    renew(files, ends_at(2_100_000_000))
    assert told(files) == 2_000_000_000
    server_credentials(files)
    assert told(files) == 2_100_000_000


def test_of_a_chain_the_first_end_counts(files: ServerFiles) -> None:
    renew(files, ends_at(2_000_000_000))
    issuer = trustme.CA().issue_cert("issuer", not_after=ends_at(1_900_000_000))
    with files.certificate.open("ab") as file:
        file.write(issuer.cert_chain_pems[0].bytes())
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    assert told(files) == 1_900_000_000


def test_a_certificate_that_is_refused_is_not_told(files: ServerFiles) -> None:
    load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    before = told(files)
    renew(files, ends_at(2_000_000_000))
    lock(files.key)
    with pytest.raises(ConfigurationError):
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    assert told(files) == before
