"""The commands of `ecp`, one module each.

A module's top level imports only typer, the standard library and what is as light, so that `ecp --help` stays
quick; what the command needs it imports when it runs.
"""
