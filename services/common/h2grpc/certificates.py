"""TLS for the HTTP/2 edge: ALPN h2, certificates read again when their files change; it accepts nothing."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Final

from services.common.errors import ConfigurationError
from services.common.tls import ServerFiles, read_pem

_log = logging.getLogger(__name__)

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """Gives each handshake the files as they are; broken new files keep the old ones in use."""

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._stamp = self._stamp_of_files()
        self._current = self._read()
        self.context = self._read()
        """For the listener."""
        self.context.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """OpenSSL asks this in every handshake, also of clients that name no server."""
        self._look()
        handshake.context = self._current

    def _look(self) -> None:
        stamp = self._stamp_of_files()
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
        for path in (files.certificate, files.key, files.client_ca):
            if path is not None:
                read_pem(path)
        try:
            context.load_cert_chain(files.certificate, files.key)
            if files.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(files.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot be used for TLS: {error.strerror or error}",
                where=f"{files.certificate}, {files.key}",
                do="check the TLS_..._FILE settings",
            ) from error
        return context

    def _stamp_of_files(self) -> Stamp:
        paths = (self._files.certificate, self._files.key, self._files.client_ca)
        return tuple(None if path is None else _stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size
