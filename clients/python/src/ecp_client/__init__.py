"""Clients of Execution Control Plane: what a bridge beside a trading terminal imports."""

__version__ = "0.1.0"
