"""Runs buf and the generators of .venv-gen over protos/; must not depend on anything that is generated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mesh import bootstrap
from mesh.clone import ROOT
from mesh.errors import ConfigurationError, MeshError

RELEASED_CONTRACTS = "protos/released.binpb"
OUTPUTS = ("gen/python", "gen/betterproto")
# Otherwise it is in the home folder, which may not be there to write.
BUF_ENVIRONMENT = {"BUF_CACHE_DIR": str(Path(sys.prefix) / "buf-cache")}
GENERATOR_PYTHON_MAX = (3, 13)  # the newest that grpcio-tools 1.71 has wheels for


def regenerate() -> list[str]:
    """Formats and lints protos/ and makes gen/ anew. Returns the paths that changed, relative to the clone.

    Raises:
        MeshError: buf found a fault in protos/ (it has been printed), or the tools cannot be installed.
    """
    buf("format", "--write")
    buf("lint")
    before = _contents(ROOT)
    _generate(ROOT)
    return _differing(before, _contents(ROOT))


def stale_files() -> list[str]:
    """The paths in gen/ that differ from what protos/ gives, relative to the clone and sorted.

    Raises:
        MeshError: buf found a fault in protos/ (it has been printed), or the tools cannot be installed.
    """
    with tempfile.TemporaryDirectory(prefix="ecp-gen-") as folder:
        _generate(Path(folder))
        return _differing(_contents(Path(folder)), _contents(ROOT))


def runs_on_oldest_protobuf() -> bool:
    """Whether the google flavour can be imported with the protobuf of .venv-gen, the oldest that bridges may bring."""
    modules = sorted(
        path.relative_to(ROOT / "gen/python").with_suffix("").as_posix().replace("/", ".")
        for path in ROOT.glob("gen/python/**/*_pb2*.py")
    )
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "gen/python"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(tools_environment().python), "-P", "-W", "error", "-c", code, *modules]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == 0


def record_release() -> str:
    """Records the contracts as the ones that no later change may break. Returns the file's path.

    Raises:
        MeshError: they break the ones recorded before (what breaks has been printed).
    """
    if (ROOT / RELEASED_CONTRACTS).exists():
        buf("breaking", "--against", RELEASED_CONTRACTS)
    buf("build", "--exclude-source-info", "--output", RELEASED_CONTRACTS)
    return RELEASED_CONTRACTS


def buf(*arguments: str) -> None:
    """Runs buf in the clone, quietly unless it fails.

    Raises:
        MeshError: it failed; what it said has been printed to stderr.
    """
    binaries = (ROOT / ".venv-gen" / "bin", Path(sys.executable).parent)
    # betterproto2's plugin looks for ruff on PATH.
    path = os.pathsep.join([*map(str, binaries), os.environ.get("PATH", os.defpath)])
    completed = subprocess.run(
        [binaries[1] / "buf", *arguments],
        cwd=ROOT,
        env={**os.environ, **BUF_ENVIRONMENT, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if completed.returncode:
        print(completed.stdout, end="", file=sys.stderr)
        raise MeshError(f"buf {' '.join(arguments)} failed (see above)")


def tools_environment() -> bootstrap.Environment:
    """.venv-gen, made or brought up to date where needed.

    Raises:
        ConfigurationError: it cannot be made.
    """
    tools = bootstrap.environment(ROOT / ".venv-gen", ROOT / "requirements-gen.lock")
    try:
        bootstrap.bring_up_to_date(tools, _generator_interpreter())
    except bootstrap.BootstrapError as error:
        raise ConfigurationError(str(error)) from error
    return tools


def _generate(out: Path) -> None:
    tools_environment()
    buf("generate", "--output", str(out))
    _tidy(out)


def _tidy(out: Path) -> None:
    """Removes stubs of gRPC modules that do not exist and adds the PEP 561 markers of those that do."""
    for stub in out.glob("gen/python/**/*_pb2_grpc.pyi"):
        if not stub.with_suffix(".py").exists():
            stub.unlink()
    for package in ("gen/python/execution", "gen/betterproto/ecp_betterproto"):
        (out / package / "py.typed").touch()


def _generator_interpreter() -> str:
    if sys.version_info[:2] <= GENERATOR_PYTHON_MAX:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(GENERATOR_PYTHON_MAX[1], 10, -1)]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise ConfigurationError(
            f"code generation needs one of {', '.join(names)} on PATH (grpcio-tools 1.71)"
        )
    return found


def _contents(root: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for output in OUTPUTS:
        for folder, _, names in os.walk(root / output):
            if Path(folder).name != "__pycache__":
                for name in names:
                    path = Path(folder, name)
                    files[path.relative_to(root).as_posix()] = path.read_bytes()
    return files


def _differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
