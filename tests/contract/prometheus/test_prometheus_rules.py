"""Each rule against what the services export, and each alert against what is promised to whom it wakes."""

from __future__ import annotations

import re

import promql_parser as promql
import pytest

from services.ingest.settings import IngestSettings
from services.ledger.settings import LedgerSettings
from services.risk.settings import RiskSettings
from tests.contract.prometheus.exported import vocabularies
from tests.contract.prometheus.promql import Judge, counted
from tests.contract.prometheus.rules import RUNBOOK, alerts, recorded_labels, recordings

SEVERITIES = {"critical", "warning"}
PROMISED = {"HighLatency", "HighRejectionRate", "DatabaseConnectionFailure"}
"""Their names and limits are agreed with the operators."""
MADE_WITH_THE_SHARD = {"shard"}
"""How many there are is known only as the ledger starts: tests/unit/ledger holds it to making their series then."""


def _faults(expression: str) -> list[str]:
    judge = Judge(recorded_labels())
    judge.labels(promql.parse(expression))
    return judge.faults


@pytest.mark.parametrize("name", [*alerts(), *recordings()])
def test_a_rule_names_only_what_is_exported(name: str) -> None:
    rule = (alerts() | recordings())[name]
    assert _faults(rule["expr"]) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("signals_total > 0", "nobody exports signals_total"),
        ('signal_total{code="STALE"} > 0', "signal_total has no label code"),
        ('signal_rejections_total{code="STALLED"} > 0', "code is never 'STALLED'"),
        ('signal_rejections_total{code=~"STALE|STALLED"} > 0', "code is never 'STALLED'"),
        ("sum by (shard) (ledger_archive_lag_seconds)", r"no \['shard'\] to aggregate by"),
        ('fanout_latency_ms_bucket{le="20"}', "le is never '20'"),
        ("histogram_quantile(0.99, fanout_latency_ms_count)", "no buckets in"),
        ("sum by (job) (signal_total) / sum(signal_total)", "never match"),
        ("ledger_archive_lag_seconds and on (shard) ledger_log_entries", "to match on"),
        ('up{job="front-door"} == 0', "job is never 'front-door'"),
        ('grpc_server_handled_total{grpc_method="Subscribed"}', "grpc_method is never 'Subscribed'"),
    ],
)
def test_what_is_not_exported_is_noticed(expression: str, fault: str) -> None:
    (found,) = _faults(expression)
    assert re.search(fault, found)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert set(rule["labels"]) == {"severity"}
    assert rule["labels"]["severity"] in SEVERITIES
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert re.fullmatch(r"[^.]+(?:\.\d[^.]*)*\.", re.sub(r"\{\{.*?\}\}", "1", notes["summary"])), (
        "one sentence"
    )
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"docs/operations/runbook.md#{name.lower()}"


@pytest.mark.parametrize("name", alerts())
def test_an_alert_names_only_labels_that_its_result_has(name: str) -> None:
    rule = alerts()[name]
    labels = Judge(recorded_labels()).labels(promql.parse(rule["expr"])) or frozenset()
    named = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
    assert set(named) <= labels


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    sections = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alerts())


def test_each_section_says_what_it_means_and_what_to_do() -> None:
    parts = re.split(r"^### (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        text = re.split(r"^## ", text, flags=re.MULTILINE)[0]
        assert text.count("**Means**") == 1, name
        assert text.count("**Do**") == 1, name
        assert f"*{alerts()[name]['labels']['severity']}*" in text, name


def test_the_promised_alerts_are_there_with_their_limits() -> None:
    assert set(alerts()) >= PROMISED
    assert (alerts()["HighLatency"]["expr"], alerts()["HighLatency"]["for"]) == (
        "signal_ingest_latency_ms:p99_5m > 50",
        "5m",
    )
    assert alerts()["HighRejectionRate"]["expr"].splitlines()[1].endswith(" > 0.05")
    assert alerts()["HighRejectionRate"]["for"] == "10m"


@pytest.mark.parametrize("name", alerts())
def test_what_an_alert_counts_is_there_before_it_happens(name: str) -> None:
    expression = alerts()[name]["expr"]
    for selector in counted(promql.parse(expression)):
        exporting = [words for words in vocabularies().values() if selector.name in words.samples]
        late = {label for label, values in exporting[0].samples[selector.name].items() if not values}
        if late - MADE_WITH_THE_SHARD:
            begun = str(selector).replace("{}", "").replace(", ", ",")
            assert f"{begun} unless {begun} offset" in " ".join(expression.split()), selector.name


def test_limits_that_follow_settings_follow_their_defaults() -> None:
    ledger, risk = LedgerSettings.model_fields, RiskSettings.model_fields
    entries = IngestSettings.model_fields["log_entries_max"].default
    assert f"> {int(0.8 * entries)}" in alerts()["LogNearItsBound"]["expr"]
    assert f"> {3 * risk['check_interval_seconds'].default:g}" in alerts()["DetectorSilent"]["expr"]
    # Archived between 90 and 120 minutes ago: past the retention for the whole of the last half hour at least.
    assert ledger["log_retention_seconds"].default == 3_600
    assert ledger["housekeeping_interval_seconds"].default * 6 == 6 * 3_600
