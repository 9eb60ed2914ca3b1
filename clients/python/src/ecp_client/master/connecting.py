"""Keeps a master connected: one connection after the other until it is closed or given up; it sends no signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import secrets
import ssl
import time
from collections.abc import Callable

from ecp_client.addresses import parse_address
from ecp_client.clock import ServerClock, monotonic_us
from ecp_client.errors import LoginRefusedError
from ecp_client.master import events
from ecp_client.master.connection import Connection
from ecp_client.master.delivery import Delivery
from ecp_client.master.endings import End, Outlook
from ecp_client.master.events import MasterState
from ecp_client.master.handshake import Identity
from ecp_client.master.pacing import Pacing
from ecp_client.master.session import MasterSession, SessionLimits
from ecp_client.master.settings import MasterSettings
from ecp_client.version import CLIENT_NAME

logger = logging.getLogger("ecp_client.master")

OPEN_POLL_SECONDS = 0.05


class Connecting:
    """The connections of one master. `on_change` runs on the event loop after each input to the session."""

    def __init__(
        self,
        settings: MasterSettings,
        delivery: Delivery,
        clock: ServerClock,
        tls: ssl.SSLContext | None,
        on_change: Callable[[], None],
        tell: Callable[[events.MasterEvent], None],
    ) -> None:
        self.state = MasterState.STOPPED
        self.connection: Connection | None = None
        self._settings = settings
        self._delivery = delivery
        self._clock = clock
        self._on_change = on_change
        self._tell = tell
        self._tls = tls
        self._license_token = settings.license_token
        self._last_end: End | None = None
        self._opened = asyncio.Event()
        self._opened_at = math.inf
        self._wake = asyncio.Event()
        self._closing = False

    async def run(self) -> End:
        """Stays connected until `close`, or until there is no hope; returns why."""
        addresses = self._settings.addresses
        pacing = Pacing(self._settings)
        turn = random.randrange(len(addresses))
        while True:
            self.state = MasterState.CONNECTING
            self._opened_at = math.inf
            before = self._delivery.stats.acknowledged
            end = await self._connect(addresses[turn % len(addresses)])
            turn += 1
            self._last_end = end
            open_seconds = max(0.0, time.monotonic() - self._opened_at)
            delay = pacing.delay(end, self._delivery.stats.acknowledged > before, open_seconds)
            if self._closing:
                return end
            self._tell(events.Disconnected(end.reason, end.code))
            if delay is None:
                logger.error("master %d gives up: %s %s", self._settings.master_id, end.code, end.reason)
                return end
            self.state = MasterState.BACKING_OFF
            await self._pause(delay)

    def opened(self) -> None:
        """The server has welcomed the session."""
        self.state = MasterState.OPEN
        self._last_end = None
        self._opened_at = time.monotonic()
        self._opened.set()

    def ended(self) -> None:
        """Nothing will be connected any more."""
        self.state = MasterState.STOPPED if self._closing else MasterState.FAILED

    def close(self) -> bool:
        """Says goodbye, if somebody listens: then `run` returns when the server has answered. Whether one does."""
        self._closing = True
        self._wake.set()
        connection = self.connection
        if connection is None or connection.session is None or self.state is not MasterState.OPEN:
            return False
        connection.session.say_bye("closing")
        connection.flush()
        return True

    def set_license_token(self, token: str) -> None:
        """Uses another license from the next login on, which is now if the last one was refused."""
        self._license_token = token
        if self._last_end is not None and self._last_end.outlook is Outlook.REFUSED:
            self._last_end = None
        self._wake.set()

    async def wait_open(self) -> None:
        """Returns when a session is open.

        Raises:
            LoginRefusedError: the server refused the login.
        """
        while not self._opened.is_set():
            end = self._last_end
            if end is not None and (end.outlook is Outlook.REFUSED or self.state is MasterState.FAILED):
                raise LoginRefusedError(end.code, end.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_POLL_SECONDS):
                    await self._opened.wait()

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        if not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def _connect(self, address: str) -> End:
        """One connection from start to end."""
        connection = Connection(self._begin, self._on_change)
        self.connection = connection
        try:
            await self._open(connection, address)
            self._delivery.stats.connections += 1
            await connection.closed
        except (OSError, TimeoutError) as error:
            return End(Outlook.RETRY, f"{address}: {error or 'no answer in time'}")
        finally:
            self._opened.clear()
            self.connection = None
            connection.abort()
        end = connection.session.end if connection.session is not None else None
        return end or End(Outlook.RETRY, "the connection was lost")

    async def _open(self, connection: Connection, address: str) -> None:
        host, port = parse_address(address)
        name = None if self._tls is None else self._settings.server_hostname or host
        async with asyncio.timeout(self._settings.connect_timeout_seconds):
            await asyncio.get_running_loop().create_connection(
                lambda: connection, host, port, ssl=self._tls, server_hostname=name
            )

    def _begin(self) -> MasterSession:
        settings = self._settings
        identity = Identity(
            settings.master_id,
            settings.key_id,
            settings.secret,
            self._license_token,
            settings.client or CLIENT_NAME,
        )
        limits = SessionLimits(login_us_max=int(settings.login_timeout_seconds * 1e6))
        resume = self._delivery.resume()
        nonce = secrets.token_bytes(32)
        return MasterSession(identity, resume, self._clock, monotonic_us(), nonce, limits)
