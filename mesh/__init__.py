"""The whole mesh on one machine: command line, embedded servers, supervisor, demo. Services never import it."""

__version__ = "0.1.0"
