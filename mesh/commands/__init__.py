"""The commands of `ecp`, one module each. A module's top level imports only typer and the standard library, so that
`ecp --help` stays quick; what the command needs it imports when it runs."""
