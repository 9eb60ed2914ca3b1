"""Sends queued outcomes to the risk service until they are taken; it decides nothing about them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpc import aio

from ecp_client.backoff import Backoff
from ecp_client.channels import open_channel
from ecp_client.errors import CertificatesError
from ecp_client.subscriber.events import OutcomesDropped, OutcomesRefused, SubscriberEvent
from ecp_client.subscriber.reporting import Outcomes
from ecp_client.subscriber.settings import SubscriberSettings
from execution.risk.v1.risk_service_pb2_grpc import RiskServiceStub

if TYPE_CHECKING:
    # Known to the type stubs alone.
    from execution.risk.v1.risk_service_pb2_grpc import RiskServiceAsyncStub

logger = logging.getLogger("ecp_client.subscriber")


class Reporter:
    """One subscriber's reports. The same report may arrive twice: the risk service takes it once, by its event_id."""

    def __init__(
        self,
        settings: SubscriberSettings,
        outcomes: Outcomes,
        metadata: Callable[[], tuple[tuple[str, str], ...]],
        tell: Callable[[SubscriberEvent], None],
    ) -> None:
        self._settings = settings
        self._outcomes = outcomes
        self._metadata = metadata
        self._tell = tell
        self._dropped_told = 0
        self._turn = random.randrange(max(1, len(settings.risk_addresses)))
        self._channel: aio.Channel | None = None
        self._stub: RiskServiceAsyncStub | None = None

    async def run(self) -> None:
        """Reports for ever."""
        settings = self._settings
        backoff = Backoff(settings.reconnect_seconds_min, settings.reconnect_seconds_max)
        while True:
            await asyncio.sleep(settings.report_interval_seconds)
            self._tell_dropped()
            if await self.flush():
                backoff.reset()
            else:
                await self._close_channel()
                await asyncio.sleep(backoff.next_delay())

    async def flush(self) -> bool:
        """Sends everything that is queued; whether all of it was taken."""
        while (request := self._outcomes.next_request()) is not None:
            try:
                response = await self._connected().ReportOutcomes(
                    request, metadata=self._metadata(), timeout=self._settings.call_timeout_seconds
                )
            except aio.AioRpcError as error:
                logger.info("outcomes wait: %s %s", error.code().name, error.details())
                return False
            except CertificatesError as error:
                logger.info("outcomes wait: %s", error)
                return False
            self._outcomes.sent()
            if response.refused:
                refused = tuple((one.event_id, one.message) for one in response.refused)
                logger.warning("the risk service refused %d outcomes: %s", len(refused), refused[0])
                self._tell(OutcomesRefused(refused))
        return True

    async def close(self) -> None:
        """Sends what is left, once, and closes the channel."""
        if len(self._outcomes):
            await self.flush()
        await self._close_channel()

    def _connected(self) -> RiskServiceAsyncStub:
        if self._stub is None:
            settings = self._settings
            address = settings.risk_addresses[self._turn % len(settings.risk_addresses)]
            self._turn += 1
            self._channel = open_channel(
                address,
                plaintext=settings.plaintext,
                ca_file=settings.ca_file,
                server_hostname=settings.server_hostname,
            )
            self._stub = RiskServiceStub(self._channel)
        return self._stub

    async def _close_channel(self) -> None:
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    def _tell_dropped(self) -> None:
        dropped = self._outcomes.dropped
        if dropped > self._dropped_told:
            self._tell(OutcomesDropped(dropped - self._dropped_told, dropped))
            self._dropped_told = dropped
