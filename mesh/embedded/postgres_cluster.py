"""Makes a PostgreSQL cluster (initdb), whole or not at all; starts no server."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from mesh.embedded.postgres_binaries import Binaries, environment
from mesh.errors import ConfigurationError
from mesh.process import User

SUPERUSER = "postgres"
PASSWORD_FILE = "postgres-password"
INITDB_SECONDS_MAX = 120.0


def make(cluster: Path, binaries: Binaries, run_folder: Path, user: User | None, *, durable: bool) -> None:
    """Makes the cluster beside its place and moves it there, so that an interrupted call leaves none.

    The superuser's password goes into a file next to it. It blocks for a second or so.

    Raises:
        ConfigurationError: initdb's own reason, or no account to run it under.
    """
    fresh = cluster.with_name("cluster.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password = secrets.token_urlsafe(32)
    password_file = run_folder / "password"
    _write_private(password_file, password)
    account = _account_for_initdb(user)
    if account:
        for path in (fresh, password_file, run_folder):
            os.chown(path, account.uid, account.gid)
    _initdb(fresh, binaries.reachable_by(account, run_folder), password_file, account, durable=durable)
    password_file.unlink()
    if user:
        os.chown(run_folder, user.uid, user.gid)
        _give(fresh, user)
    _write_private(cluster.with_name(PASSWORD_FILE), password)
    fresh.rename(cluster)


def _initdb(
    fresh: Path, binaries: Binaries, password_file: Path, account: User | None, *, durable: bool
) -> None:
    command = [
        *_lent_account(),
        str(binaries.folder / "initdb"),
        *("--pgdata", str(fresh), "--username", SUPERUSER, "--pwfile", str(password_file)),
        *("--auth-local", "trust", "--auth-host", "scram-sha-256", "--data-checksums"),
        *("--encoding", "UTF8", *_locale_options(binaries.major)),
        *(() if durable else ("--no-sync",)),
    ]
    completed = _run(command, account)
    if completed.returncode < 0:
        # A signal ended it, such as one for a process that had its number before; that says nothing about the folder.
        _empty(fresh)
        completed = _run(command, account)
    if completed.returncode:
        raise ConfigurationError(
            f"PostgreSQL could not make a data folder in {fresh.parent}: {_reason(completed)}"
        )


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _run(command: list[str], account: User | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=INITDB_SECONDS_MAX,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )


def _reason(completed: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in completed.stdout.splitlines() if line.strip()]
    reasons = [line for line in said if "error" in line or "FATAL" in line or "no account" in line]
    if reasons or said:
        return (reasons or said)[-1]
    if completed.returncode < 0:
        return f"initdb was ended by signal {-completed.returncode}"
    return f"initdb said nothing and ended with {completed.returncode}"


def _account_for_initdb(user: User | None) -> User | None:
    """Whom root runs initdb as, which, unlike the server, insists on a user that has a name."""
    return _account(user.uid) if user else None


def _lent_account() -> tuple[str, ...]:
    """What to put before the command when this ordinary user has no name either, as in some containers."""
    try:
        pwd.getpwuid(os.geteuid())
        return ()
    except KeyError:
        account = _account(os.geteuid())
    script = Path(__file__).with_name("exec_with_account.py")
    return (sys.executable, "-I", "-S", str(script), str(account.uid), str(account.gid))


def _account(preferred_uid: int) -> User:
    accounts = [entry for entry in pwd.getpwall() if entry.pw_uid]
    accounts.sort(key=lambda entry: (entry.pw_uid != preferred_uid, entry.pw_name != "nobody"))
    if not accounts:
        raise ConfigurationError("initdb needs an account other than root and there is none: make one")
    return User(accounts[0].pw_uid, accounts[0].pw_gid)


def _locale_options(major: int) -> tuple[str, ...]:
    """Code point order and UTF-8 character classes, the same on every machine."""
    if major >= 17:
        return ("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C")
    return ("--locale", "C.UTF-8")


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)


def _give(folder: Path, user: User) -> None:
    for root, _, names in os.walk(folder):
        for path in (root, *(os.path.join(root, name) for name in names)):
            os.lchown(path, user.uid, user.gid)
