"""What the fan-out tells Prometheus; it decides nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from services.fanout.domain.codec import Message

_STATES: Final = ("UNSPECIFIED", "SYNCED", "DEGRADED_GAP", "RESYNCING", "PAUSED_CLOSE_ONLY", "PAUSED_ALL")
_LATENCY_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000)


class TallyHistogram(Collector):
    """A histogram that costs a tenth of a microsecond to feed; made for one event loop, not for threads."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Adds an observation, or the same one several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram as Prometheus reads it: cumulative buckets."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound is None else f"{float(bound)}", total))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets=buckets, sum_value=self._sum)
        yield family


class Sent(Collector):
    """What was written to all streams: plain numbers, since they change with every message of every stream."""

    def __init__(self) -> None:
        self.messages = 0
        self.signals = 0
        self.bytes = 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The numbers as Prometheus reads them."""
        yield CounterMetricFamily("fanout_deliveries", "Signals written to streams.", value=self.signals)
        yield CounterMetricFamily("fanout_messages", "Messages written to streams.", value=self.messages)
        yield CounterMetricFamily(
            "fanout_sent_bytes", "Bytes of messages written to streams.", value=self.bytes
        )


SENT = Sent()
REGISTRY.register(SENT)


class States(Collector):
    """How many subscriptions of open streams are in which state; counted when Prometheus asks, in its thread."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Iterable[str]]] = []

    @contextmanager
    def counting(self, source: Callable[[], Iterable[str]]) -> Iterator[None]:
        """Counts what `source` gives, one name for each subscription, while the block runs."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The numbers as Prometheus reads them, also of states that nobody is in."""
        counts = dict.fromkeys(_STATES, 0)
        for source in tuple(self._sources):
            for state in source():
                counts[state] = counts.get(state, 0) + 1
        family = GaugeMetricFamily(
            "fanout_subscriptions", "Subscriptions of open streams, by state.", labels=["state"]
        )
        for state, count in counts.items():
            family.add_metric([state], count)
        yield family


STATES = States()
REGISTRY.register(STATES)


LATENCY_MS = TallyHistogram(
    "fanout_latency_ms",
    "From the front door's check of a signal to the write of the message that carries it, oldest signal of each;"
    " without what a stream that resumes is told again.",
    _LATENCY_MS,
)
REGISTRY.register(LATENCY_MS)

STREAMS = Gauge("fanout_streams", "Open streams.")
GAPS = Counter("fanout_gaps_total", "Gaps told to streams, by reason.", ("reason",))
TAILED_SIGNALS = Counter("fanout_tailed_signals_total", "Signals read from the log into the ring.")
TAILED_ENTRIES = Counter("fanout_tailed_entries_total", "Entries of the log read into the ring.")
TAIL_BROKEN = Counter("fanout_tail_events_total", "What happened to the tail of the log.", ("event",))
ACKNOWLEDGEMENTS = Counter(
    "fanout_acknowledgements_total",
    "Positions acknowledged over another connection than the stream's: told to other processes, or dropped.",
    ("outcome",),
)
UNREADABLE = Counter("fanout_unreadable_entries_total", "Entries that could not be parsed.", ("stream",))
# Thousands of streams are looked at each second, and a Histogram's observe takes 2 µs.
LAG_SIGNALS = TallyHistogram(
    "fanout_subscriber_lag_signals",
    "Positions that a stream was not sent yet, looked at about once a second for each stream.",
    (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000),
)
REGISTRY.register(LAG_SIGNALS)
LAG_SECONDS = TallyHistogram(
    "fanout_subscriber_lag_seconds",
    "For how long a stream has not had everything, looked at about once a second for each stream.",
    (0, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900),
)
REGISTRY.register(LAG_SECONDS)
SLOW_READERS = Counter(
    "fanout_slow_readers_total", "Readers that fell behind, by what was done.", ("action", "limit")
)
STREAMS_ENDED = Counter("fanout_streams_ended_total", "Streams that this side ended, by reason.", ("reason",))
PAGES = Counter("fanout_backlog_pages_total", "Pages read behind the ring.", ("source", "result"))
SNAPSHOTS = Counter("fanout_snapshots_total", "Snapshots looked for, by how it went.", ("result",))
AUTHENTICATIONS = Counter("fanout_authentications_total", "License tokens looked up.", ("result",))
CHANGES = Counter("fanout_entitlement_changes_total", "Announced changes that reached a stream.", ("kind",))
RECORDED = Counter("fanout_recorded_positions_total", "Positions sent to the ledger.", ("result",))
RECORD_PENDING = Gauge("fanout_record_pending", "Positions that wait for the ledger.")
RING_BYTES = Gauge("fanout_ring_bytes", "About what the ring costs in memory.")
RING_MASTERS = Gauge("fanout_ring_masters", "Masters with a log in the ring.")

# What alerts count must be there before it first happens: the increase from nothing to 1 is none to Prometheus.
for _event in ("disconnected", "trimmed", "restored", "missed", "replaced"):
    TAIL_BROKEN.labels(_event)
for _result in ("recorded", "failed", "dropped", "dropped_transition"):
    RECORDED.labels(_result)
for _limit in ("unacknowledged_seconds", "catch_up_seconds", "signals", "bytes", "seconds"):
    SLOW_READERS.labels("ended", _limit)
    SLOW_READERS.labels("warned", _limit)


def written(message: Message, times: int, now_us: int) -> None:
    """A message of signals was written, to so many streams."""
    SENT.messages += times
    SENT.bytes += len(message.data) * times
    SENT.signals += message.signals * times
    LATENCY_MS.observe((now_us - message.received_at_us) / 1_000, times)
