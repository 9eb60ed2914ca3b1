"""What a process tells systemd, or whoever started it in systemd's way; it asks nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

_log = logging.getLogger(__name__)


def notify(state: str) -> bool:
    """Sends assignments, one a line, as in sd_notify(3); False when nobody asked for them or listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.setblocking(False)
            notifier.sendto(state.encode(), address)
    except OSError as error:
        _log.warning("systemd was not notified: %s", error)
        return False
    return True


def watchdog_seconds() -> float | None:
    """How often at least systemd wants to hear that we live (its WatchdogSec), if it does."""
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    return int(interval_us) / 1e6 if interval_us.isdigit() and int(interval_us) > 0 else None


async def feed_watchdog(is_well: Callable[[], bool] = lambda: True) -> None:
    """Tells systemd twice per WatchdogSec that the event loop is alive, if systemd asked for it and all `is_well`."""
    seconds = watchdog_seconds()
    while seconds is not None:
        if is_well():
            notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)
