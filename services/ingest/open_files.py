"""How many connections the process may hold by its limit of open files; it opens none."""

from __future__ import annotations

import logging
import resource
from typing import Final

_log = logging.getLogger(__name__)

RESERVED_FILES: Final = 256
"""What everything else needs: the log, the ledger, gRPC, the admin port, logs."""


def connections_that_fit(wanted: int) -> int:
    """Raises the process's limit of open files for `wanted` connections as far as it may; returns how many fit.

    Were there fewer files than connections, strangers could take the one that the log's next connection needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fits = max(1, soft - RESERVED_FILES)
    _log.warning(
        "%d connections are taken, not CONNECTIONS_MAX=%d: the limit of open files is %d (ulimit -Hn)",
        fits,
        wanted,
        soft,
    )
    return fits
