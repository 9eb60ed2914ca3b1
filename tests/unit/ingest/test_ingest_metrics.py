"""The histogram that takes a whole batch at once."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.ingest.metrics import CUT_REASONS, BatchHistogram


def buckets(histogram: BatchHistogram) -> dict[str, float]:
    (metric,) = histogram.collect()
    return {s.labels["le"]: s.value for s in metric.samples if s.name == "latency_ms_bucket"}


def test_a_batch_counts_as_its_signals():
    histogram = BatchHistogram("latency_ms", "For a test.", (1, 5))
    histogram.observe(0.5, 10)
    histogram.observe(5, 3)
    histogram.observe(100)
    assert buckets(histogram) == {"1.0": 10, "5.0": 13, "+Inf": 14}
    (metric,) = histogram.collect()
    values = {sample.name: sample.value for sample in metric.samples}
    assert values["latency_ms_count"] == 14
    assert values["latency_ms_sum"] == 0.5 * 10 + 5 * 3 + 100


def test_every_limit_of_connections_is_counted_from_the_start():
    counted = {
        sample.labels["reason"]
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "ingest_connections_cut_total"
    }
    assert counted == set(CUT_REASONS)
