"""The rules as Prometheus itself understands them: promtool checks them and runs their tests, where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from tests.contract.prometheus.promql import Judge
from tests.contract.prometheus.rules import FOLDER, alerts, recorded_labels

SECONDS_MAX = 90
TESTS = sorted((FOLDER / "tests").glob("*.test.yaml"))
ASKED = re.compile(r'alertname="(\w+)",alertstate="firing"')


@pytest.fixture(scope="session")
def promtool() -> str:
    """Where promtool is."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("there is no promtool: the rules' own tests are not run (Debian has it in `prometheus`)")
    return found


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)
    assert done.returncode == 0, done.stdout + done.stderr


def _groups() -> list[dict[str, Any]]:
    return [group for path in TESTS for group in yaml.safe_load(path.read_text())["tests"]]


def test_promtool_takes_the_rules(promtool: str) -> None:
    _run(promtool, "check", "rules", *sorted((FOLDER / "rules").glob("*.yaml")))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_rules_pass_their_tests(promtool: str, path: Path) -> None:
    _run(promtool, "test", "rules", path)


def test_promtool_takes_the_example_of_a_configuration(promtool: str, tmp_path: Path) -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    for scrape in config["scrape_configs"]:
        # Debian's promtool is built without Kubernetes.
        scrape["static_configs"] = [{"targets": ["localhost:9090"]}]
        assert scrape.pop("kubernetes_sd_configs")
    config["rule_files"] = [str(FOLDER / pattern) for pattern in config["rule_files"]]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    _run(promtool, "check", "config", tmp_path / "prometheus.yaml")


def _expectations(name: str) -> Iterator[bool]:
    """Of each question whether the alert fires, whether it should."""
    for group in _groups():
        for test in group.get("promql_expr_test", ()):
            asked = ASKED.search(test["expr"])
            if asked is not None and asked[1] == name:
                yield bool(test["exp_samples"])


@pytest.mark.parametrize("name", alerts())
def test_each_alert_is_tested_when_it_fires_and_when_it_does_not(name: str) -> None:
    assert set(_expectations(name)) == {True, False}


def test_the_tests_feed_only_series_that_are_exported() -> None:
    judge = Judge(recorded_labels())
    for group in _groups():
        for series in group["input_series"]:
            judge.labels(promql.parse(series["series"]))
    free = re.compile(r": (?:instance|pool|stream|shard|file|worker|limit) is never ")
    assert [fault for fault in judge.faults if not free.search(fault)] == []
