"""`ecp lock`: makes the lock files anew; it installs nothing, the next `./ecp` does."""

from __future__ import annotations

from typing import Annotated

import typer


def lock(
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Take the newest allowed versions of all packages.")
    ] = False,
) -> None:
    """Remake the lock files from pyproject.toml and requirements-gen.in."""
    from mesh import locking

    for path in locking.relock(upgrade=upgrade):
        typer.echo(f"wrote {path}")
