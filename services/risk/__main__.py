"""`python -m services.risk [serve|migrate]`; settings and run, nothing else."""

from __future__ import annotations

from services.common import lifecycle
from services.risk.app import migrate, running
from services.risk.settings import RiskSettings


def main() -> int:
    """Runs the risk service and returns the exit code."""
    return lifecycle.command_line(RiskSettings, running=running, migrate=migrate)


if __name__ == "__main__":
    raise SystemExit(main())
