from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from services.common.errors import ConfigurationError
from services.common.h2grpc.certificates import Certificates
from services.common.tls import ServerFiles, load_certificate


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
