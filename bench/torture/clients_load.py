"""Appends signals to the log at a steady rate, each an entry of its own, and says how many; it reads nothing."""

from __future__ import annotations

import argparse
import json
import time
from typing import Final

from bench.feeders import LogFeeder

_TICK_SECONDS: Final = 0.002
_SAY_SECONDS: Final = 0.25
_BATCH_MAX: Final = 200


def feed(feeder: LogFeeder, total: int, rate: float) -> None:
    """Appends `total` signals, `rate` a second; what a pause of this process has delayed is made up for."""
    began = said = time.perf_counter()
    fed = 0
    while fed < total:
        now = time.perf_counter()
        due = min(total, int((now - began) * rate) + 1, fed + _BATCH_MAX)
        feeder.feed([time.time_ns() // 1_000] * (due - fed))
        fed = due
        if now - said >= _SAY_SECONDS:
            said = now
            _say(fed, is_over=False)
        time.sleep(_TICK_SECONDS)
    _say(fed, is_over=True)


def _say(fed: int, *, is_over: bool) -> None:
    print(json.dumps({"fed": fed, "is_over": is_over}), flush=True)


def main() -> None:
    """Feeds as the arguments say."""
    parser = argparse.ArgumentParser(description="Appends signals to the log at a steady rate.")
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--signals", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    feeder = LogFeeder(options.redis_url)
    # A client that lags on a busy machine is served from further back, however far that is.
    feeder.entries_max = 2 * options.signals
    feed(feeder, options.signals, options.rate)


if __name__ == "__main__":
    main()
