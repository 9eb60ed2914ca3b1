"""A subscriber that copies masters at half their volume and says what it does with each signal, and why.

`ecp up` prints a license; the addresses are those of fanout and risk:

    python subscriber.py --fanout 127.0.0.1:50052 --risk 127.0.0.1:50054 --plaintext --license ecp_... --master 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path

from ecp_client.copying import CopySettings, Decision, Reason, explain
from ecp_client.subscriber import Batch, Start, Subscriber, SubscriberEvent, SubscriberSettings
from execution.common.v1.signal_pb2 import SequencedSignal

HALF_E4 = 5_000
SPREAD_POINTS_MAX = 30


def current_spread_points(_symbol: str) -> int:
    """What a bridge would ask its terminal."""
    return 12


def protect(_sequenced: SequencedSignal, decision: Decision) -> Reason:
    """Has the last word on every opening."""
    too_wide = current_spread_points(decision.symbol) > SPREAD_POINTS_MAX
    return Reason.SPREAD if too_wide else Reason.NONE


async def main() -> None:
    """Follows until it is stopped; the next start goes on where the journal ends."""
    options = parsed()
    copy = CopySettings(volume_multiplier_e4=HALF_E4, max_signal_age_ms=5_000)
    settings = SubscriberSettings(
        addresses=options.fanout,
        risk_addresses=options.risk or (),
        license_token=options.license,
        masters=dict.fromkeys(options.master, copy),
        start=Start(options.start),
        journal_folder=options.journal,
        plaintext=options.plaintext,
        ca_file=options.ca_file,
        client="example-subscriber/1.0",
    )
    received = asyncio.Event()
    count = 0

    def on_batch(batch: Batch) -> None:
        nonlocal count
        # Here a bridge would trade: decision.volume_lots_e8 is what the account is to hold of the position.
        for sequenced, decision in zip(batch.signals, batch.decisions, strict=True):
            place = f"{sequenced.master_id}/{sequenced.epoch}/{sequenced.sequence}"
            print(f"{place}: {explain(sequenced.signal, decision, copy)}")
        count += len(batch.signals)
        if 0 < options.count <= count:
            received.set()

    def on_event(event: SubscriberEvent) -> None:
        print(f"  {event}")

    async with Subscriber(settings, on_batch=on_batch, on_event=on_event, protection=protect):
        await received.wait()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Copies masters and explains each decision.")
    parser.add_argument("--fanout", action="append", required=True, help="host:port; may be repeated")
    parser.add_argument("--risk", action="append", help="host:port of the risk service, for outcome reports")
    parser.add_argument("--license", required=True)
    parser.add_argument("--master", type=int, action="append", required=True, help="may be repeated")
    parser.add_argument("--start", choices=[start.value for start in Start], default=Start.NOW.value)
    parser.add_argument("--count", type=int, default=0, help="leave after so many signals; 0 is never")
    parser.add_argument("--journal", type=Path, default=Path("journal"), help="folder that survives restarts")
    parser.add_argument("--plaintext", action="store_true", help="no TLS: for a mesh on this machine")
    parser.add_argument("--ca-file", type=Path, help="certificates to trust, PEM")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
