"""The front door: takes masters' signed signals over raw TCP or gRPC and puts them into the log, in order."""
