"""A master that opens a position, protects it, closes half of it and then the rest.

It needs what `ecp admin` printed when the master and its owner's license were made:

    python master.py --front-door 127.0.0.1:9000 --plaintext --license ecp_... \\
        --master-id 1 --key-id KEY --secret BASE64
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from pathlib import Path

from ecp_client import signals
from ecp_client.books import Book
from ecp_client.master import Master, MasterEvent, MasterSettings
from execution.common.v1.signal_pb2 import Signal, SignalKind

SECONDS_MAX = 30


async def trade(master: Master, ticket: int) -> None:
    """One trade from its opening to its end."""
    lots, price = signals.to_e8("0.10"), signals.to_e8("1.07140")

    def signal(kind: SignalKind.ValueType) -> Signal:
        return Signal(kind=kind, position_id=ticket, symbol="EURUSD")

    opened = signal(signals.OPEN)
    opened.side, opened.volume_lots_e8, opened.price_e8 = signals.BUY, lots, price
    sequence = await master.send(opened)
    print(f"position {ticket} opened: sequence {sequence}")
    modified = signal(signals.MODIFY)
    modified.stop_loss_e8 = signals.to_e8("1.06900")
    await master.send(modified)
    half = signal(signals.PARTIAL_CLOSE)
    # What REMAINS is stated, so that a repeat would do no harm.
    half.volume_lots_e8 = lots // 2
    await master.send(half)
    last = await master.send(signal(signals.CLOSE))
    await master.wait_acknowledged(last, SECONDS_MAX)
    epoch, acknowledged = master.acknowledged
    print(f"everything up to sequence {acknowledged} of epoch {epoch} is in the log")


async def main() -> None:
    """Logs in, trades once, and leaves."""
    options = parsed()
    settings = MasterSettings(
        addresses=options.front_door,
        master_id=options.master_id,
        key_id=options.key_id,
        secret=base64.b64decode(options.secret),
        license_token=options.license,
        outbox_folder=options.outbox,
        plaintext=options.plaintext,
        ca_file=options.ca_file,
        client="example-master/1.0",
    )

    def on_event(event: MasterEvent) -> None:
        print(f"  {event}")

    async with Master(settings, book=Book(), on_event=on_event) as master:
        await master.wait_open(SECONDS_MAX)
        await trade(master, ticket=master.last_sequence + 1)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Sends one trade's signals.")
    parser.add_argument("--front-door", action="append", required=True, help="host:port; may be repeated")
    parser.add_argument("--master-id", type=int, required=True)
    parser.add_argument("--key-id", required=True)
    parser.add_argument("--secret", required=True, help="the signing key's secret in base64")
    parser.add_argument("--license", required=True)
    parser.add_argument("--outbox", type=Path, default=Path("outbox"), help="folder that survives restarts")
    parser.add_argument("--plaintext", action="store_true", help="no TLS: for a mesh on this machine")
    parser.add_argument("--ca-file", type=Path, help="certificates to trust, PEM")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
