"""`ecp check`: everything about the source that is not a test, as CI does it; it changes no file."""

from __future__ import annotations

from typing import Annotated

import typer


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Which checks; all of them when none is named.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The branch or tag whose contracts the change must not break.",
            metavar="REF",
            show_default="main",
        ),
    ] = None,
) -> None:
    """Check the source: format, lint, types, imports, contracts, generated code, documents."""
    from mesh import checks

    failed = checks.run(names or [], against=against)
    if failed:
        typer.echo(f"ecp: failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)
