"""`ecp gen`: the generated code in gen/, made from protos/; nothing else ever writes there."""

from __future__ import annotations

from typing import Annotated

import typer


def gen(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; list the files that differ and exit with 1.")
    ] = False,
    release: Annotated[
        bool,
        typer.Option("--release", help="Also record protos/ as released: later changes must not break it."),
    ] = False,
) -> None:
    """Regenerate gen/ from protos/, after formatting and linting them."""
    from mesh import codegen

    if not check:
        changed = codegen.regenerate()
        typer.echo(f"gen/: {len(changed)} files changed" if changed else "gen/ was up to date")
        if release:
            typer.echo(f"recorded {codegen.record_release()}")
        return
    stale = codegen.stale_files()
    for name in stale:
        typer.echo(name)
    if stale:
        typer.echo(f"gen/ differs from protos/ in {len(stale)} files: run ./ecp gen", err=True)
        raise typer.Exit(1)
    typer.echo("gen/ is up to date")
