"""The embedded servers under an ordinary user, also when the tests themselves run as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.clone import ROOT
from mesh.embedded import folders
from mesh.process import User

ORDINARY = User(54322, 54322)

# mesh.embedded needs the standard library only, so any interpreter that the user can reach will do.
SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from mesh.embedded import postgres, redis

async def main():
    data = Path(sys.argv[1])
    for _ in range(2):
        async with postgres(data / "postgres") as database, redis(data / "redis") as cache:
            assert database.user is None
            for pid in (database.pid, cache.pid):
                assert os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    print("both ran twice as", os.geteuid())

asyncio.run(main())
"""


def reachable_interpreter() -> Path | None:
    for name in (sys.executable, "python3", "/usr/bin/python3"):
        found = shutil.which(name)
        if found and folders.first_closed(Path(found).resolve().parent, ORDINARY) is None:
            version = subprocess.run(
                [found, "-c", "import sys; print(sys.version_info >= (3, 11))"],
                capture_output=True,
                text=True,
                check=False,
            )
            if version.stdout.strip() == "True":
                return Path(found)
    return None


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become an ordinary user; the other tests ran as one"
)
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_ordinary_user_runs_both(data_folder: Path) -> None:
    interpreter = reachable_interpreter()
    packages = (
        Path(sys.executable).parent.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    )
    closed = folders.first_closed(packages, ORDINARY) or folders.first_closed(ROOT, ORDINARY)
    if interpreter is None or closed:
        pytest.skip(f"an ordinary user cannot get to {closed or 'any Python 3.11'}")
    home = data_folder / "home"
    home.mkdir()
    os.chown(home, ORDINARY.uid, ORDINARY.gid)
    completed = subprocess.run(
        [interpreter, "-P", "-B", "-c", SCRIPT, str(home / "mesh")],
        user=ORDINARY.uid,
        group=ORDINARY.gid,
        extra_groups=[],
        cwd=home,
        env={"HOME": str(home), "PATH": os.defpath, "PYTHONPATH": f"{ROOT}:{packages}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == f"both ran twice as {ORDINARY.uid}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes the folder that the ordinary user may not write")
@pytest.mark.parametrize("server", ["postgres", "redis"])
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["unwritable", "closed"])
def test_a_data_folder_that_is_somebody_else_s_is_one_clear_line(
    server: str, mode: int, data_folder: Path
) -> None:
    interpreter = reachable_interpreter()
    if interpreter is None or folders.first_closed(ROOT, ORDINARY):
        pytest.skip("an ordinary user cannot get to the project")
    theirs = data_folder / "theirs"
    theirs.mkdir()
    theirs.chmod(mode)
    script = f"import asyncio, sys\nfrom pathlib import Path\nfrom mesh.embedded import {server}\n"
    script += (
        f"async def main():\n    async with {server}(Path(sys.argv[1])):\n        pass\nasyncio.run(main())"
    )
    completed = subprocess.run(
        [interpreter, "-P", "-B", "-c", script, str(theirs / "mesh")],
        user=ORDINARY.uid,
        group=ORDINARY.gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    last_line = completed.stderr.splitlines()[-1]
    expected = f"cannot write to the data folder {theirs}/mesh (Permission denied): choose one that you own"
    assert last_line == f"mesh.errors.ConfigurationError: {expected}"
