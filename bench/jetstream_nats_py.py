"""JetStream's subscribers with its own Python client: `python -m bench.jetstream_nats_py JSON`; counts as the others.

One nats-py client for each subscriber, all on one uvloop, with a callback that does nothing but count.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

import uvloop

from bench.end_to_end_readers import Reading, Received, Subscriber, Swarm, reading_of, say_ready
from bench.jetstream import nats_client

_LOOK_SECONDS: Final = 0.01
_LINGER_SECONDS: Final = 0.3
_NO_LIMIT: Final = 0


async def read(reading: Reading) -> Received:
    """Subscribes, and waits for every signal or until nothing comes any more."""
    swarm = Swarm(reading)
    clients = []
    for subject in reading.subjects:
        client = await nats_client(reading.port)
        await client.subscribe(
            subject,
            cb=_taking(swarm.subscriber()),
            pending_msgs_limit=_NO_LIMIT,
            pending_bytes_limit=_NO_LIMIT,
        )
        await client.flush()
        clients.append(client)
    say_ready()
    swarm.begin()
    while not swarm.is_over:  # noqa: ASYNC110 - silence is an end, too
        await asyncio.sleep(_LOOK_SECONDS)
    received = swarm.result()
    await asyncio.sleep(_LINGER_SECONDS)
    for client in clients:
        await client.close()
    return received


def _taking(subscriber: Subscriber) -> Callable[[Any], Awaitable[None]]:
    async def take(message: Any) -> None:
        subscriber.take(message.data)

    return take


def main() -> int:
    """Reads what the argument describes."""
    try:
        received = uvloop.run(read(reading_of(sys.argv[1])))
    except Exception as error:
        # Whatever it was, the benchmark that waits for this process is to hear why it ends.
        print(json.dumps({"error": f"the readers failed: {type(error).__name__}: {error}"}), flush=True)
        return 1
    print(json.dumps(asdict(received)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
