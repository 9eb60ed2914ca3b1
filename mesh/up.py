"""Keeps a mesh running with one master that trades slowly and one user who follows it, for people who look around."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc

from mesh import runfile
from mesh.connection import Connection, RefusedError, describe
from mesh.demo.cast import Behaviour, MasterRole, SubscriberRole
from mesh.demo.provision import MasterCredentials, Provisioner
from mesh.demo.trader import Trader
from mesh.embedded.folders import locked_data_folder
from mesh.errors import MeshError
from mesh.hints import Guest
from mesh.running import Mesh, MeshOptions, running

FOREVER_SECONDS = float("inf")
OPEN_SECONDS_MAX = 30.0
WATCH_SECONDS = 0.5
STRATEGY = 1


@dataclass(frozen=True, slots=True)
class UpOptions:
    """signals_per_second is the demo master's pace; 0 leaves it out of the market after its login."""

    mesh: MeshOptions
    signals_per_second: float


async def keep_up(
    options: UpOptions, *, ready: Callable[[Mesh, Guest], None], tell: Callable[[str], None]
) -> None:
    """Runs until it is cancelled. `ready` is called once, when everything serves; `tell` with what happens later.

    Raises:
        ConfigurationError: a mesh of this folder runs already, or something is not fit to start.
        MeshError: something did not start.
    """
    folder = options.mesh.data or runfile.DEFAULT_FOLDER
    async with AsyncExitStack() as stack:
        stack.enter_context(locked_data_folder(folder, others_may_pass=True))
        mesh = await stack.enter_async_context(running(options.mesh))
        run_file = mesh.run_file()
        run_file.write(folder)
        stack.callback(lambda: runfile.remove(folder, pid=run_file.pid))
        master, guest = await asyncio.to_thread(_provision, mesh)
        trader = await stack.enter_async_context(_trader(mesh, master))
        await _until_open(trader, mesh)
        ready(mesh, guest)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_watch(mesh, tell))
            if options.signals_per_second:
                tasks.create_task(trader.trade(FOREVER_SECONDS, options.signals_per_second))


def _provision(mesh: Mesh) -> tuple[MasterCredentials, Guest]:
    connection = Connection(mesh.grpc, mesh.operator_token)
    try:
        provisioner = Provisioner(connection, uuid.uuid4().hex[:8])
        master = provisioner.master(MasterRole("demo-master", STRATEGY))
        follower = provisioner.subscriber(
            SubscriberRole("demo-subscriber", (0,), 100, Behaviour.HONEST), [master]
        )
    except grpc.RpcError as error:
        raise RefusedError(f"the ledger refused the demo accounts: {describe(error)}") from error
    finally:
        connection.close()
    return master, Guest(follower.user_id, follower.license_token, master.master_id)


def _trader(mesh: Mesh, master: MasterCredentials) -> Trader:
    spec = {
        "name": master.role.name, "strategy": master.role.strategy, "master_id": master.master_id,
        "key_id": master.key_id, "secret": base64.b64encode(master.secret).decode(),
        "license_token": master.license_token,
    }  # fmt: skip
    return Trader(spec, mesh.front_door, mesh.folder)


async def _until_open(trader: Trader, mesh: Mesh) -> None:
    try:
        await trader.master.wait_open(OPEN_SECONDS_MAX)
    except TimeoutError as error:
        said = mesh.services["ingest"].last_log_line()
        raise MeshError(
            f"the demo master could not log in within {OPEN_SECONDS_MAX:.0f} s; ingest's log ends: {said}"
        ) from error


async def _watch(mesh: Mesh, tell: Callable[[str], None]) -> None:
    known = {service.name: service.restarts for service in mesh.services.values()}
    told: dict[str, str] = {}
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        for service in mesh.services.values():
            if service.restarts > known[service.name] and service.serving:
                known[service.name] = service.restarts
                tell(f"{service.name} died and was started again; its log is {service.spec.log_file}")
        troubles = {service.name: service.trouble for service in mesh.services.values() if service.trouble}
        troubles |= mesh.troubles
        for name, trouble in troubles.items():
            if told.get(name) != trouble:
                tell(f"{name} died and does not start again: {trouble}")
        told = troubles
