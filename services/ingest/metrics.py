"""What the front door counts; a batch is observed in one call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from execution.ingest.v1 import frames_pb2 as pb

_LATENCY_MS: Final = (0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 250, 500, 1_000, 5_000)
_REJECT_PREFIX: Final = "REJECT_CODE_"


class BatchHistogram(Collector):
    """A histogram that takes many equal observations at once, which prometheus_client's own cannot."""

    def __init__(self, name: str, documentation: str, buckets: Iterable[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Counts `count` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        """The cumulative buckets, as Prometheus wants them."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip(
            (*map(str, map(float, self._bounds)), "+Inf"), list(self._counts), strict=True
        ):
            total += count
            buckets.append((bound, total))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


LATENCY_MS: Final = BatchHistogram(
    "signal_ingest_latency_ms",
    "From a signal's arrival at the front door to its durability in the log, in milliseconds.",
    _LATENCY_MS,
)
REGISTRY.register(LATENCY_MS)
SIGNALS: Final = Counter("signal_total", "Signals that became durable in the log.")
REJECTIONS: Final = Counter("signal_rejections_total", "Frames refused, by reject code.", ("code",))
DUPLICATES: Final = Counter("ingest_duplicates_total", "Signals that came again and were acknowledged again.")
SNAPSHOTS: Final = Counter("ingest_snapshots_total", "Snapshots stored.")
CONNECTIONS: Final = Gauge("ingest_connections", "Connections of masters, by state.", ("state",))
CUT: Final = Counter(
    "ingest_connections_cut_total", "Connections that the front door cut, by reason.", ("reason",)
)
PAUSED: Final = Counter("ingest_backpressure_pauses_total", "Times that reading from a master was paused.")
CREDITS: Final = Gauge(
    "ingest_credits", "Signals that a session may have under way now; less while the log is behind."
)
LOG_UP: Final = Gauge("ingest_log_up", "1 while the log takes appends in all its shards, else 0.")
LOG_SHARD_UP: Final = Gauge(
    "ingest_log_shard_up", "1 while the shard of the log takes appends, else 0.", ("shard",)
)
LOG_FAILURES: Final = Counter("ingest_log_failures_total", "Times that the log was lost.")
LOG_LOSSES: Final = Counter(
    "ingest_log_losses_total", "Sessions ended because the log had less than it confirmed."
)
EPOCHS: Final = Counter("ingest_epochs_begun_total", "Epochs begun because history was lost.")
OUTSTANDING: Final = Gauge("ingest_outstanding_bytes", "Bytes under way to the log.")
FLUSH_BYTES: Final = Histogram(
    "ingest_flush_bytes",
    "Size of one entry of the log.",
    buckets=(256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304),
)
FLUSH_SECONDS: Final = Histogram(
    "ingest_flush_seconds",
    "Time from sending a flush to its durability.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
AUTHORISATIONS: Final = Counter(
    "ingest_authorisations_total", "Logins decided, by what decided them.", ("result",)
)

CUT_REASONS: Final = (
    "network",
    "address",
    "connections",
    "unauthenticated",
    "unauthenticated_seconds",
    "unauthenticated_bytes",
    "slow_frame",
    "slow_reader",
    "idle",
    "master",
    "streams",
    "tls",
)
"""The limits of connections: `frame_bytes` and `rate` are counted as rejections (TOO_LARGE, RATE_LIMITED)."""
_rejections: Final = {
    code: REJECTIONS.labels(name.removeprefix(_REJECT_PREFIX)) for name, code in pb.RejectCode.items() if code
}
for _reason in CUT_REASONS:
    CUT.labels(_reason)
for _state in ("open", "unauthenticated", "refused"):
    CONNECTIONS.labels(_state)
for _result in ("cached", "allowed", "refused", "grace", "unavailable", "overloaded"):
    AUTHORISATIONS.labels(_result)


_shards_up: dict[int, bool] = {}


def log_shards(shards: int) -> None:
    """The log has so many shards, none of which takes appends yet."""
    _shards_up.clear()
    for shard in range(shards):
        _shards_up[shard] = False
        LOG_SHARD_UP.labels(str(shard)).set(0)
    LOG_UP.set(0)


def log_up(shard: int, is_up: bool) -> None:
    """A shard of the log takes appends from now on, or does not."""
    _shards_up[shard] = is_up
    LOG_SHARD_UP.labels(str(shard)).set(is_up)
    LOG_UP.set(all(_shards_up.values()))


def count_rejections(codes: Iterable[pb.RejectCode.ValueType]) -> None:
    """Counts refused frames; every code is there from the start, at 0."""
    for code in codes:
        _rejections[code].inc()
