"""`python -m services.ingest`: settings and run, nothing else."""

from __future__ import annotations

import sys

from services.common import lifecycle
from services.ingest.app import running
from services.ingest.settings import IngestSettings

if __name__ == "__main__":
    sys.exit(lifecycle.command_line(IngestSettings, running=running))
