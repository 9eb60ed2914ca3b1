"""Where this clone is; the development commands work on it, whatever the current directory."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
