"""Where the launcher enters: the command line, also quiet when it is interrupted while it loads; it decides nothing."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs the command line and exits."""
    try:
        from mesh.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
