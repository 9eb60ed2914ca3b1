"""The whole mesh on one machine: the command line, embedded servers, supervisor and demo. Services never import it."""

__version__ = "0.1.0"
