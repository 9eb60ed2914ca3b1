"""`ecp up`: keeps the mesh running on this machine and says what to try next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.commands.choices import FOLDER, LogLevel, folder

if TYPE_CHECKING:
    from mesh.hints import Guest
    from mesh.running import Mesh

PortOption = Annotated[int, typer.Option(min=0, max=65_535, help="Port on the loopback; 0 is any free one.")]


def up(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Keep everything in this folder; without it all is temporary.",
            parser=folder,
            metavar=FOLDER,
        ),
    ] = None,
    front_door_port: PortOption = 0,
    fanout_port: PortOption = 0,
    rate: Annotated[float, typer.Option(min=0, max=100, help="Signals a second of the demo master.")] = 1.0,
    log_level: Annotated[
        LogLevel, typer.Option(case_sensitive=False, help="The least of what the services log.")
    ] = LogLevel.INFO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON for scripts.")] = False,
) -> None:
    """Keep the mesh running until Ctrl-C, with a demo master that trades, and print what to try next."""
    from mesh.process import run_until_signalled
    from mesh.running import MeshOptions
    from mesh.up import UpOptions, keep_up

    options = MeshOptions(
        data=data.resolve() if data else None,
        front_door_port=front_door_port,
        fanout_port=fanout_port,
        log_level=log_level.value,
    )
    typer.echo("Starting PostgreSQL, Valkey, ledger, risk, ingest and fanout …", err=True)
    ready = _print_json if as_json else _print
    run_until_signalled(
        keep_up(UpOptions(options, rate), ready=ready, tell=lambda text: typer.echo(text, err=True))
    )


def _print_json(mesh: Mesh, guest: Guest) -> None:
    from mesh.hints import commands

    made = {
        "front_door": mesh.front_door,
        "grpc": mesh.grpc,
        "admin": mesh.admin,
        "database_url": mesh.database_url,
        "redis_url": mesh.redis_url,
        "operator_token": mesh.operator_token,
        "license_token": guest.license_token,
        "user_id": guest.user_id,
        "master_id": guest.master_id,
        "commands": [command for _, command in commands(mesh, guest)],
    }
    typer.echo(json.dumps(made, indent=2))


def _print(mesh: Mesh, guest: Guest) -> None:
    from mesh.hints import commands

    lines = [
        "",
        "The mesh is up.",
        "",
        f"  front door (masters, TCP)   {mesh.front_door}",
        f"  fanout (subscribers, gRPC)  {mesh.grpc['fanout']}",
        *(f"  {name} (gRPC)".ljust(30) + mesh.grpc[name] for name in ("ingest", "ledger", "risk")),
        *(
            f"  {name} metrics".ljust(30) + f"http://{address}/metrics"
            for name, address in mesh.admin.items()
        ),
        "  PostgreSQL".ljust(30) + mesh.database_url,
        "  Redis".ljust(30) + mesh.redis_url,
        "  data".ljust(30)
        + (str(mesh.data) if mesh.data else "temporary, gone when this ends (keep it with --data)"),
        "",
        f"  demo license: {guest.license_token} follows master {guest.master_id}, which trades real EUR/USD prices",
        "",
        "Try in another terminal:",
    ]
    for label, command in commands(mesh, guest):
        lines += ["", f"  # {label}", f"  {command}"]
    lines += [
        "",
        "`ecp status` shows health, heads, lag and states; `ecp admin` changes things. Ctrl-C stops all.",
    ]
    typer.echo("\n".join(lines))
