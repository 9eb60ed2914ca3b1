"""TLS for the HTTP/2 edge: ALPN h2, certificates read again when their files change; it accepts nothing."""

from __future__ import annotations

import logging
import ssl
from typing import Final

from services.common.errors import ConfigurationError
from services.common.tls import ServerFiles, load_certificate, read_pem

_log = logging.getLogger(__name__)

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Certificates:
    """Gives each handshake the files as they are; broken new files keep the old ones in use."""

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._stamp = self._files.stamp()
        self._current = self._read()
        self.context = self._read()
        """For the listener."""
        self.context.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """OpenSSL asks this in every handshake, also of clients that name no server."""
        self._look()
        handshake.context = self._current

    def _look(self) -> None:
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._current = self._read()
        except ConfigurationError as error:
            _log.error("certificate not reloaded, the old one stays in use: %s", error.message)
        else:
            _log.info("certificate reloaded from %s", self._files.certificate)

    def _read(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["h2"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        load_certificate(context, files)
        if files.client_ca is not None:
            read_pem(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(files.client_ca)
            except OSError as error:  # ssl.SSLError is one
                raise ConfigurationError(
                    f"cannot use {files.client_ca}: {error.strerror or 'not a CA certificate'}",
                    where="TLS_CLIENT_CA_FILE",
                    do="give a PEM file with the CA that signs the clients' certificates",
                ) from error
        return context
