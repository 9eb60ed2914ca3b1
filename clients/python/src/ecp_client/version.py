"""What this library calls itself. Pure."""

from __future__ import annotations

from ecp_client import __version__

CLIENT_NAME = f"ecp-client-python/{__version__}"
