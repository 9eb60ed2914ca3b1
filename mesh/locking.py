"""Resolves the dependencies into lock files, for all supported Pythons and platforms at once; installs nothing."""

from __future__ import annotations

import subprocess

from mesh.clone import ROOT
from mesh.codegen import tools_environment
from mesh.errors import MeshError

LOCKS = {
    "requirements.lock": ["--extra", "dev", "pyproject.toml"],
    # What the services' container image installs: no extras, at the versions of the lock above.
    "deploy/container/requirements.lock": ["--constraint", "requirements.lock", "pyproject.toml"],
    "requirements-gen.lock": ["requirements-gen.in"],
}
OPTIONS = [
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
]


def relock(*, upgrade: bool) -> list[str]:
    """Writes the lock files and returns their names; versions stay where possible, unless `upgrade`.

    Raises:
        MeshError: the requirements contradict one another or the index did not answer (uv has said so).
    """
    uv = str(tools_environment().folder / "bin" / "uv")
    for name, inputs in LOCKS.items():
        command = [
            uv,
            "pip",
            "compile",
            *OPTIONS,
            *(["--upgrade"] if upgrade else []),
            f"--output-file={name}",
            *inputs,
        ]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise MeshError(f"uv could not resolve {name} (see above)")
    return list(LOCKS)
