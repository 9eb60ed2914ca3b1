"""The demo in folders as people have them: with long names, with spaces, and used before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)


def demo(folder: Path, json_file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mesh.cli", "demo", "--seconds", "5", "--no-view"]
    return subprocess.run(
        [*command, "--data", str(folder), "--json", str(json_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_a_folder_with_a_long_name_and_spaces_bears_a_demo_and_is_not_played_in_twice(
    data_folder: Path, tmp_path: Path
) -> None:
    # Longer than a Unix socket's path may be.
    folder = data_folder / "my trading books" / ("long" * 30)
    done = demo(folder, tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["ok"]
    assert (folder / "demo" / "masters").is_dir()

    again = demo(folder, tmp_path / "again.json")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        3,
        f"ecp: cannot make {folder.resolve()}/demo (File exists): give --data a new folder",
    )
    assert not (tmp_path / "again.json").exists()
