"""grpcio as a stock client: reads one stream with the sync or the asyncio API and prints it as the examples do.

It keeps no position and comes back never: what is looked at is one stream, from its first signal to its status.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Final

import grpc

from execution.common.v1 import position_pb2, signal_pb2
from execution.fanout.v1 import fanout_service_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2_grpc

# As a client would that wants to know early when its server is gone.
_OPTIONS: Final = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 10_000))


def shown(response: pb.SubscribeResponse) -> str:
    """The lines for one message, each with its end; nothing for a Progress."""
    match response.WhichOneof("event"):
        case "signals":
            return "".join(map(_signal, response.signals.signals))
        case "progress":
            return ""
        case "drain":
            return "drain: the server ends the stream\n"
        case "state_change":
            change = response.state_change
            name = pb.SubscriptionState.Name(change.state).removeprefix("SUBSCRIPTION_STATE_")
            return f"state of master {change.master_id}: {name} {change.reason}\n"
        case other:
            return f"{other}: {' '.join(str(response).split())}\n"


def _signal(one: signal_pb2.SequencedSignal) -> str:
    return (
        f"{one.master_id}/{one.epoch}/{one.sequence} after {one.previous_epoch}/{one.previous_sequence}:"
        f" {one.signal.symbol} position {one.signal.position_id}\n"
    )


def _request(options: argparse.Namespace) -> pb.SubscribeRequest:
    start = pb.MasterStart(master_id=options.master, after=position_pb2.StreamPosition())
    return pb.SubscribeRequest(masters=[start], client=f"grpcio-{options.api}")


def _metadata(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {options.license}"),)


def read_sync(options: argparse.Namespace) -> None:
    """Reads with grpc's own threads."""
    if options.ca_file is None:
        channel = grpc.insecure_channel(options.fanout, _OPTIONS)
    else:
        channel = grpc.secure_channel(
            options.fanout, grpc.ssl_channel_credentials(options.ca_file.read_bytes()), _OPTIONS
        )
    with channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        try:
            for response in stub.Subscribe(_request(options), metadata=_metadata(options)):
                _write(shown(response))
        except grpc.RpcError as error:
            # What a stream raises is its call, too.
            status: grpc.Call = error  # type: ignore[assignment]  # as the stubs do not know
            _write(f"stream ended: {status.code().name} {status.details()}\n")
        else:
            _write("stream ended: OK\n")


async def read_aio(options: argparse.Namespace) -> None:
    """Reads with grpc.aio."""
    if options.ca_file is None:
        channel = grpc.aio.insecure_channel(options.fanout, _OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(options.ca_file.read_bytes())
        channel = grpc.aio.secure_channel(options.fanout, credentials, _OPTIONS)
    async with channel:
        stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        try:
            async for response in stub.Subscribe(_request(options), metadata=_metadata(options)):
                _write(shown(response))
        except grpc.aio.AioRpcError as error:
            _write(f"stream ended: {error.code().name} {error.details()}\n")
        else:
            _write("stream ended: OK\n")


def _write(lines: str) -> None:
    if lines:
        sys.stdout.write(lines)
        sys.stdout.flush()


def main() -> None:
    """Reads the stream that the arguments name."""
    parser = argparse.ArgumentParser(description="Reads one stream with grpcio and prints it.")
    parser.add_argument("--api", choices=["sync", "aio"], required=True)
    parser.add_argument("--fanout", required=True, help="host:port")
    parser.add_argument("--license", required=True)
    parser.add_argument("--master", type=int, required=True)
    parser.add_argument("--ca-file", type=Path, help="certificates to trust, PEM; plaintext without")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        if options.api == "sync":
            read_sync(options)
        else:
            asyncio.run(read_aio(options))


if __name__ == "__main__":
    main()
