"""What the launcher reads from a lock file, and how it compares names."""

from __future__ import annotations

from mesh import bootstrap
from mesh.clone import ROOT

LOCK = """\
asyncpg==0.32.0 \\
    --hash=sha256:aa
    # via execution-control-plane (pyproject.toml)
uvloop==0.23.0 ; sys_platform != 'win32' \\
    --hash=sha256:bb
ruamel.yaml_clib==1.0
"""


def test_every_locked_package_is_named_once_whatever_its_marker() -> None:
    assert bootstrap.locked_names(LOCK) == {"asyncpg", "uvloop", "ruamel-yaml-clib"}


def test_the_real_lock_files_name_what_the_project_cannot_do_without() -> None:
    locked = bootstrap.locked_names((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    tools = bootstrap.locked_names((ROOT / "requirements-gen.lock").read_text(encoding="utf-8"))
    assert {"grpcio", "asyncpg", "hatchling", "pytest"} <= locked
    assert {"grpcio-tools", "uv"} <= tools


def test_lock_files_carry_a_hash_for_each_package_and_no_address() -> None:
    for name in ("requirements.lock", "requirements-gen.lock"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if "://" in line or line.startswith("--")]
        for number, line in enumerate(lines):
            if "==" in line.split("#")[0]:
                assert "--hash=sha256:" in lines[number + 1], line
