"""The launcher and the environments it makes; offline, so with a lock file that holds nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import __version__, bootstrap
from mesh.clone import ROOT
from mesh.embedded import folders
from mesh.process import User

ORDINARY = User(54326, 54326)


def launch(launcher: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", launcher, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.fixture
def bare_clone(tmp_path: Path) -> Path:
    """As much of a clone as the launcher looks at before it has an environment."""
    clone = tmp_path / "clone with a space"
    (clone / "mesh").mkdir(parents=True)
    shutil.copy2(ROOT / "ecp", clone)
    shutil.copy2(ROOT / "mesh" / "bootstrap.py", clone / "mesh")
    (clone / "requirements.lock").write_text("# nothing\n")
    (clone / "pyproject.toml").write_text("[project]\n")
    return clone


def fake_interpreter(folder: Path, script: str) -> str:
    path = folder / "python-of-sorts"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_it_runs_the_command_line_through_links_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ecp").symlink_to(ROOT / "ecp")
    (tmp_path / "link").symlink_to("bin/ecp")
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh" / "__init__.py").write_text("raise SystemExit('the wrong mesh')")
    completed = subprocess.run(
        [tmp_path / "link", "--version"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (completed.stdout, completed.stderr) == (f"ecp {__version__}\n", "")


def test_what_other_pythons_were_told_does_not_reach_into_the_environment(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise SystemExit('the wrong typer')")
    completed = launch(ROOT / "ecp", "--version", PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path))
    assert (completed.stdout, completed.stderr) == (f"ecp {__version__}\n", "")


def test_an_interpreter_that_is_too_old_is_one_clear_line(bare_clone: Path, tmp_path: Path) -> None:
    old = fake_interpreter(tmp_path, "exit 1")
    completed = launch(bare_clone / "ecp", ECP_PYTHON=old)
    assert completed.returncode == 3
    assert completed.stderr == f"ecp: ECP_PYTHON={old} is not a Python 3.11 or newer\n"


def test_no_interpreter_at_all_is_one_clear_line(bare_clone: Path, tmp_path: Path) -> None:
    for tool in ("readlink", "dirname", "cksum"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    completed = launch(bare_clone / "ecp", PATH=str(tmp_path), ECP_PYTHON="")
    assert completed.returncode == 3
    assert completed.stderr.startswith("ecp: needs Python 3.11 or newer and found none: install it (Debian")
    assert completed.stderr.count("\n") == 1


def test_a_python_without_venv_says_what_to_install(bare_clone: Path, tmp_path: Path) -> None:
    target = bootstrap.environment(bare_clone / ".venv", bare_clone / "requirements.lock")
    python = fake_interpreter(tmp_path, "echo /usr/bin/python3.11; echo 3.11.2; exit 1")
    with pytest.raises(
        bootstrap.BootstrapError, match=r"has no venv module: install it .*apt install python3\.11-venv"
    ):
        bootstrap.bring_up_to_date(target, python)


def run_as_ordinary(clone: Path) -> subprocess.CompletedProcess[str]:
    """`ecp` as a user whom no file names."""
    return subprocess.run(
        [clone / "ecp"],
        user=ORDINARY.uid,
        group=ORDINARY.gid,
        extra_groups=[],
        env={"PATH": os.defpath, "ECP_PYTHON": "/usr/bin/python3"},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes the clone that the ordinary user may not write")
def test_a_clone_that_cannot_be_written_is_one_clear_line(data_folder: Path, bare_clone: Path) -> None:
    if (
        folders.first_closed(Path("/usr/bin/python3").resolve().parent, ORDINARY)
        or not Path("/usr/bin/python3").exists()
    ):
        pytest.skip("an ordinary user cannot get to a Python")
    clone = shutil.copytree(bare_clone, data_folder / "clone")
    subprocess.run(["chmod", "-R", "a+rX", clone], check=True)  # whatever the umask
    completed = run_as_ordinary(clone)
    assert completed.returncode == 3
    assert completed.stderr.startswith(f"ecp: cannot write to {clone}/.venv.lock (Permission denied)")
    assert completed.stderr.count("\n") == 1


def test_an_environment_is_made_once_and_again_when_it_did_not_finish(
    bare_clone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = bootstrap.environment(bare_clone / ".venv", bare_clone / "requirements.lock")
    bootstrap.bring_up_to_date(target, sys.executable)
    assert target.is_current()
    assert "making .venv with Python" in capfd.readouterr().err

    bootstrap.bring_up_to_date(target, sys.executable)
    assert capfd.readouterr().err == "", "nothing to do, nothing to say"

    target.stamp_file.unlink()  # as when the first attempt had been interrupted
    left_over = target.folder / "left-over"
    left_over.touch()
    bootstrap.bring_up_to_date(target, sys.executable)
    assert not left_over.exists()
    assert target.is_current()

    target.python.unlink()  # as when the interpreter that it was made with is gone
    assert not target.is_current()


def test_another_lock_file_updates_it_in_place_and_another_place_makes_it_void(bare_clone: Path) -> None:
    lock = bare_clone / "requirements.lock"
    target = bootstrap.environment(bare_clone / ".venv", lock)
    bootstrap.bring_up_to_date(target, sys.executable)
    kept = target.folder / "kept"
    kept.touch()

    lock.write_text("# nothing else\n")
    updated = bootstrap.environment(bare_clone / ".venv", lock)
    assert not updated.is_current()
    bootstrap.bring_up_to_date(updated, sys.executable)
    assert updated.is_current()
    assert kept.exists()

    moved_clone = bare_clone.rename(bare_clone.with_name("moved"))
    moved = bootstrap.environment(moved_clone / ".venv", moved_clone / "requirements.lock")
    assert not moved.is_current()


def test_two_at_once_make_it_once(bare_clone: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mesh import bootstrap; clone = Path(sys.argv[1]);"
        "target = bootstrap.environment(clone / '.venv', clone / 'requirements.lock');"
        "bootstrap.bring_up_to_date(target, sys.executable); print(target.is_current())"
    )
    command = [sys.executable, "-P", "-c", code, str(bare_clone)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = ""
    for process in both:
        out, err = process.communicate()
        assert out == "True\n"
        said += err
    assert said.count("making .venv with Python") == 1


BACKEND = """
import os, pathlib, sys, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    pathlib.Path("seen").write_text(f"{pathlib.Path.home()} {os.environ.get('PIP_USER')}")
    name = "x-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as wheel:
        for file, text in FILES.items():
            wheel.writestr(f"x-1.dist-info/{file}", text)
    return name
FILES = {
    "METADATA": "Metadata-Version: 2.1\\nName: x\\nVersion: 1\\n",
    "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    "RECORD": "",
}
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "x"
version = "1"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as a user whom no file names")
def test_a_user_without_a_home_gets_an_environment(data_folder: Path, bare_clone: Path) -> None:
    if folders.first_closed(Path("/usr/bin/python3").resolve().parent, ORDINARY):
        pytest.skip("an ordinary user cannot get to a Python")
    clone = shutil.copytree(bare_clone, data_folder / "clone")
    (clone / "backend.py").write_text(BACKEND)
    (clone / "pyproject.toml").write_text(PROJECT)
    subprocess.run(["chown", "-R", str(ORDINARY.uid), clone], check=True)
    completed = run_as_ordinary(clone)
    assert "ecp: .venv is ready" in completed.stderr, completed.stderr
    assert (clone / "seen").read_text().startswith(str(clone / ".venv"))


def test_pip_s_own_wish_to_install_for_the_user_does_not_reach_into_the_environment(
    bare_clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare_clone / "backend.py").write_text(BACKEND)
    (bare_clone / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setenv("PIP_USER", "1")
    assert bootstrap.main([str(bare_clone), "1 | 1 | 1"]) == 0


@pytest.mark.parametrize(("end", "words_are_shown"), [("exit 1", True), ("kill -INT $PPID; sleep 5", False)])
def test_what_making_an_environment_says_is_shown_when_it_fails_and_not_when_it_is_interrupted(
    end: str, words_are_shown: bool, bare_clone: Path, tmp_path: Path
) -> None:
    probed = "*-c*) echo $0; echo 3.11.2;;"
    python = fake_interpreter(tmp_path, f"case $* in {probed} *) echo Traceback >&2; {end};; esac")
    code = (
        "import signal, sys; from pathlib import Path; from mesh import bootstrap; clone = Path(sys.argv[1]);"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.executable = sys.argv[2];"
        "sys.exit(bootstrap.main([str(clone), 'a stamp']))"
    )
    command = [sys.executable, "-P", "-c", code, bare_clone, python]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == (3 if words_are_shown else 130)
    assert ("Traceback" in completed.stderr) is words_are_shown
