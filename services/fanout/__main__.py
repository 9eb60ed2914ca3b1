"""Runs the fan-out service: `python -m services.fanout`."""

from __future__ import annotations

from services.common import lifecycle
from services.fanout import app
from services.fanout.settings import FanoutSettings


def main() -> int:
    """Returns the process's exit code."""
    return lifecycle.command_line(FanoutSettings, running=app.running)


if __name__ == "__main__":
    raise SystemExit(main())
