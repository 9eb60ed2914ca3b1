"""The expected failures of the command line, each one line for the person at the terminal; it prints none."""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CONFIGURATION = 3


class MeshError(Exception):
    """Something failed and the message says what, where and what to do. `exit_code` becomes the process's."""

    exit_code = EXIT_FAILURE


class UsageError(MeshError):
    """The command line names something that there is not."""

    exit_code = EXIT_USAGE


class ConfigurationError(MeshError):
    """The machine or the settings cannot work as they are: a port in use, an unwritable folder."""

    exit_code = EXIT_CONFIGURATION
