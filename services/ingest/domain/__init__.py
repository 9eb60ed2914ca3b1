"""The rules of the front door, apart from sockets, clocks, Redis and gRPC."""
