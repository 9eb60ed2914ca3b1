"""The wheel that a bridge installs: what is in it, that it needs nothing else, and that any protobuf will do."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3] / "clients" / "python"
PROTOBUF_VERSIONS = ("5.29.*", "6.33.*", "7.*")
PIP_SECONDS_MAX = 300

USE = """
import importlib, pkgutil, sys

class OnlyWhatWeNeed:
    allowed = {"ecp_client", "execution", "google", "grpc", "typing_extensions", *sys.stdlib_module_names}
    def find_spec(self, name, path=None, target=None):
        # The interpreter's own build settings, which zoneinfo looks up, are named after the platform.
        if name.partition(".")[0] not in self.allowed and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"{name} is not for the clients", name=name)

sys.meta_path.insert(0, OnlyWhatWeNeed())
import ecp_client, execution
for package in (ecp_client, execution):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
assert "site-packages" in ecp_client.__file__ or "unpacked" in ecp_client.__file__, ecp_client.__file__

from ecp_client import signals
from ecp_client.books import Book
from execution.common.v1 import signal_pb2, snapshot_pb2
one = signal_pb2.Signal(kind=signals.OPEN, position_id=1, symbol="EURUSD", side=signals.BUY,
                        volume_lots_e8=signals.to_e8("0.1"), price_e8=signals.to_e8("1.1"), occurred_at_us=1)
signals.check(one)
book = Book()
book.apply(signal_pb2.Signal.FromString(one.SerializeToString()), 1)
snapshot = book.to_snapshot(1, 1, 1)
assert not list(Book.from_snapshot(snapshot_pb2.Snapshot.FromString(snapshot.SerializeToString())).differences(book))
import google.protobuf
print(google.protobuf.__version__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_it_holds_the_client_and_the_contracts_and_asks_for_two_libraries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(metadata_name))
    assert {"ecp_client/py.typed", "execution/py.typed", "execution/ingest/v1/frames_pb2.pyi"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "ecp_client",
        "execution",
    }
    assert not [name for name in names if "__pycache__" in name]
    assert metadata["Name"] == "execution-control-plane-client"
    assert metadata["Requires-Python"] == ">=3.11"
    assert sorted(metadata.get_all("Requires-Dist", [])) == ["grpcio<2,>=1.71.2", "protobuf<8,>=5.29"]


def test_every_module_can_be_imported_with_nothing_else(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{USE}"
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", PROTOBUF_VERSIONS)
def test_it_installs_beside_old_and_new_protobuf(wheel: Path, tmp_path: Path, version: str) -> None:
    if not os.environ.get("ECP_TEST_WHEELS"):
        pytest.skip("downloads protobuf and grpcio: set ECP_TEST_WHEELS=1")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run(
        [*install, str(wheel), f"protobuf=={version}"],
        capture_output=True,
        text=True,
        timeout=PIP_SECONDS_MAX,
        check=False,
    )
    if installed.returncode and "No matching distribution" not in installed.stderr:
        pytest.skip(f"pip cannot reach an index: {installed.stderr.strip().splitlines()[-1:]}")
    assert installed.returncode == 0, installed.stderr
    used = subprocess.run(
        [python, "-P", "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith(version.removesuffix("*"))
    subprocess.run([python, "-m", "pip", "check"], check=True, capture_output=True)
