"""Starts the ledger: `python -m services.ledger [serve|migrate]`; nothing else."""

from __future__ import annotations

import sys

from services.common import lifecycle
from services.ledger.app import migrate, running
from services.ledger.settings import LedgerSettings

if __name__ == "__main__":
    sys.exit(lifecycle.command_line(LedgerSettings, running=running, migrate=migrate))
