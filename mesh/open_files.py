"""How many files, and so connections, this process and what it starts may open; it opens none."""

from __future__ import annotations

import resource

from mesh.errors import ConfigurationError

# macOS refuses more, though it calls the limit infinite.
WITHOUT_LIMIT = 10_240


def allow_open_files(wanted: int) -> int:
    """Lets this process, and what it starts, open so many files if the system allows it; returns how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(wanted, WITHOUT_LIMIT)
    if soft >= wanted:
        return soft
    allowed = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):
        return soft
    return allowed


def require_open_files(wanted: int, *, what: str) -> None:
    """Lets this process, and what it starts, open so many files.

    Raises:
        ConfigurationError: the system does not allow it.
    """
    allowed = allow_open_files(wanted)
    if allowed < wanted:
        raise ConfigurationError(
            f"{what} needs {wanted:,} open files and the system allows {allowed:,}: raise the limit (ulimit -n)"
            " or ask for fewer"
        )
