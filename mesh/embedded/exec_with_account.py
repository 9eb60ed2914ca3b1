"""Runs a program that insists on an account's name for a user that has none, in a user namespace (Linux) where it has.

It runs as a script of its own (`python -I -S`), so it must import nothing of the project. Files that the program makes
belong to the real user.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
EXIT_CANNOT_RUN = 126


def main(arguments: list[str]) -> int:
    """Arguments: uid and gid of the account to appear as, then the command."""
    uid, gid, command = arguments[0], arguments[1], arguments[2:]
    real_uid, real_gid = os.geteuid(), os.getegid()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {real_uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {real_gid} 1", encoding="ascii")
        os.execv(command[0], command)
    except OSError as error:
        print(
            f"user {real_uid} has no account and no user namespace could lend one: {error.strerror}",
            file=sys.stderr,
        )
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
