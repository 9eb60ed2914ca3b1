"""What several processes of one service refuse: wrong options and settings, and ports that others have."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.common import shared_ports
from services.common.errors import ConfigurationError
from services.common.settings import Address
from tests.integration.common.worker_parent import started


async def test_a_wrong_setting_is_told_once_and_ends_with_3(tmp_path: Path) -> None:
    async with started(tmp_path, "--workers", "3", BEHAVIOR="misconfigured") as parent:
        assert await parent.finish() == (3, "SOMETHING: is bad; change it\n")


@pytest.mark.parametrize("shares", [False, True])
async def test_a_port_in_use_ends_with_3_and_one_line(tmp_path: Path, shares: bool) -> None:
    """Also by a process of the same user that would share it: the kernel would let both have it without a word."""
    with socket.socket() as other:
        if shares:
            shared_ports.share(other)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with started(tmp_path, "--workers", "2", GRPC_BIND_ADDRESS=f"127.0.0.1:{port}") as parent:
            code, err = await parent.finish()
    assert code == 3
    assert err.startswith(f"GRPC_BIND_ADDRESS: cannot listen on 127.0.0.1:{port}: ")
    assert err.count("\n") == 1
    assert parent.pids == {}


async def test_another_parent_cannot_have_the_port(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with started(tmp_path, "--workers", "2") as parent:
        await parent.until(lambda: parent.port)
        address = f"127.0.0.1:{parent.port}"
        async with started(tmp_path / "other", "--workers", "2", GRPC_BIND_ADDRESS=address) as other:
            assert (await other.finish())[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [("--workers",), ("--workers", "2", "3"), ("serve", "--worker", "2"), ("migrate", "--workers", "2")],
)
async def test_wrong_options_end_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    async with started(tmp_path, *arguments) as parent:
        code, err = await parent.finish()
    assert (code, err) == (2, "usage: python -m services.example [serve] [--workers N]\n")


@pytest.mark.parametrize("count", ["0", "65", "two"])
async def test_a_wrong_number_of_workers_ends_with_3(tmp_path: Path, count: str) -> None:
    async with started(tmp_path, "--workers", count) as parent:
        code, err = await parent.finish()
    assert (code, err.split(":")[0], err.count("\n")) == (3, "WORKERS", 1)


def test_who_does_not_share_cannot_have_a_held_port() -> None:
    with shared_ports.held(Address("127.0.0.1", 0), "WHERE") as address:
        with pytest.raises(ConfigurationError), shared_ports.held(address, "WHERE"):
            pass
        with socket.socket() as worker:
            shared_ports.share(worker)
            worker.bind((address.host, address.port))
            worker.listen()
        with pytest.raises(OSError, match="in use"):
            socket.create_server((address.host, address.port))
