"""The front door's TLS: one context whose certificate is read again when its files change; it opens no sockets."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from services.common import tls
from services.common.errors import ConfigurationError
from services.ingest.settings import IngestSettings

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


class Certificates:
    """Gives each new connection a context with the files as they are now. A broken new file leaves the old in use."""

    def __init__(self, files: tls.ServerFiles) -> None:
        """
        Raises:
            ConfigurationError: a file cannot be used.
        """
        self._files = files
        self._stamp = files.stamp()
        self._looked_at = time.monotonic()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for a connection that begins now."""
        now_seconds = time.monotonic()
        if now_seconds - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now_seconds
            self._reload_if_changed()
        return self._context

    def _reload_if_changed(self) -> None:
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._context = self._load()
        except ConfigurationError as error:
            _log.error("certificate not reloaded, the old one stays in use: %s", error.message)
            return
        _log.info("certificate reloaded from %s", self._files.certificate)

    def _load(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A client of TLS 1.2 could make us do handshake after handshake.
        context.options |= ssl.OP_NO_RENEGOTIATION
        tls.load_certificate(context, files)
        if files.client_ca is not None:
            self._require_certificates(context, files.client_ca)
        return context

    def _require_certificates(self, context: ssl.SSLContext, client_ca: Path) -> None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise ConfigurationError(
                f"cannot use {client_ca}: {error.strerror or 'not a CA certificate'}",
                where="MASTER_CA_FILE",
                do="give a PEM file with the CA that signs the masters' certificates",
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED


def of_settings(settings: IngestSettings) -> Certificates | None:
    """The certificates that the settings name, or None for plaintext.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    files = tls.server_files(settings)
    return None if files is None else Certificates(replace(files, client_ca=settings.master_ca_file))
