"""The gRPC edge of the ledger, a module per service of the contract: proto in, store or domain call, proto out."""
