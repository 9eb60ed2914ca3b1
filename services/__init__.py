"""The four services of the execution control plane and what they share; it holds no code of theirs."""

import os

# gRPC's core reads this when it is imported. Its lines on stderr have a format of their own and say nothing that the
# services do not get as an error and log themselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
