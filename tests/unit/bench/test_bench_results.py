"""The arithmetic of benchmarks: medians, ratios, percentiles, disturbance, charts and what is written down."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from bench.machine import CpuTimes, Disturbance
from bench.plot import Line, line_chart
from bench.result import as_json, result_of
from bench.samples import Samples


def test_a_rate_is_the_median_over_the_median_of_its_yardstick():
    result = result_of("x", "signals/s", [10, 30, 20], [100, 40, 50], disturbed_runs=1)
    assert (result.value, result.yardstick, result.ratio) == (20, 50, 0.4)
    assert (result.runs, result.spread, result.disturbed_runs) == (3, 1.0, 1)


def test_of_a_latency_less_is_better_so_the_ratio_turns_round():
    assert result_of("x", "ms", [4.0], [1.0], less_is_better=True).ratio == 0.25


def test_without_a_yardstick_there_is_no_ratio():
    result = result_of("x", "MiB", [0.0])
    assert (result.yardstick, result.ratio, result.spread) == (None, None, 0.0)


def test_percentiles_are_of_all_samples_by_nearest_rank():
    samples = Samples()
    for number in range(1, 1_001):
        samples.add_seconds(number / 1_000)
    assert samples.percentiles_ms() == {
        "p50": 500.0, "p90": 900.0, "p99": 990.0, "p99.9": 999.0, "p100": 1_000.0,
    }  # fmt: skip


def test_a_sample_from_before_its_time_counts_as_zero():
    samples = Samples()
    samples.add_seconds(-1)
    assert samples.percentiles_ms((100,)) == {"p100": 0.0}


def test_no_samples_have_no_percentiles():
    assert Samples().percentiles_ms() == {}


@pytest.mark.parametrize(("steal", "others", "is_too_much"), [(0.1, 0.1, False), (0.2, 0.1, True)])
def test_a_run_is_disturbed_by_the_hypervisor_and_by_strangers_together(
    steal: float, others: float, is_too_much: bool
):
    start = CpuTimes(10.0, 100.0, 5.0, {1: 20.0})
    end = CpuTimes(20.0, 100.0 + 8.0 + others * 10, 5.0 + steal * 10, {1: 28.0})
    found = Disturbance.between(start, end)
    assert found.process_cores == {1: 0.8}
    assert found.steal_cores == pytest.approx(steal)
    assert found.others_cores == pytest.approx(others)
    assert found.is_too_much is is_too_much


def test_the_json_is_as_documented():
    document = json.loads(json.dumps(as_json({"cpu": "x"}, [result_of("ingest.x", "ms", [1.0], [2.0])])))
    assert document["machine"] == {"cpu": "x"}
    (result,) = document["results"]
    assert {"name", "value", "unit", "yardstick", "ratio", "runs", "spread"} <= set(result)


def test_a_chart_is_well_formed_and_names_its_lines():
    chart = line_chart(
        "t < u", "x", "y", [Line("a & b", [(1, 0.5), (1_000, 20)]), Line("c", [(10, 3)], True)]
    )
    texts = [element.text for element in ET.fromstring(chart).iter() if element.text and element.text.strip()]
    assert {"t < u", "a & b", "c"} <= set(texts)


def test_a_logarithmic_chart_takes_only_positive_points():
    with pytest.raises(ValueError, match="positive"):
        line_chart("t", "x", "y", [Line("a", [(0, 1)])])
