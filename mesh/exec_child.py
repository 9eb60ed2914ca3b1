"""Becomes a child that dies with its parent: drops to another user, has the kernel signal the parent's end, execs.

It runs as a script of its own (`python -I -S`), so it must import nothing of the project.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
EXIT_PARENT_GONE = 125
EXIT_CANNOT_RUN = 126


def main(arguments: list[str]) -> int:
    """Arguments: the parent's pid, the signal for its death, uid, gid (-1: stay), then the command."""
    parent, death_signal, uid, gid = map(int, arguments[:4])
    command = arguments[4:]
    try:
        # A session of its own: Ctrl-C in the terminal reaches the parent, which stops its children in order.
        os.setsid()
        if uid >= 0:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
        # After the change of user, which would clear it.
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:
                return EXIT_PARENT_GONE
        os.execv(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
    return EXIT_CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
