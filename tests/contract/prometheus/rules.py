"""The rules as Prometheus loads them."""

from __future__ import annotations

from functools import cache
from typing import Any

import promql_parser as promql
import yaml

from tests.contract.prometheus.exported import REPOSITORY
from tests.contract.prometheus.promql import Judge, Labels

FOLDER = REPOSITORY / "deploy" / "prometheus"
RUNBOOK = REPOSITORY / "docs" / "operations" / "runbook.md"

Rule = dict[str, Any]


@cache
def _all() -> tuple[Rule, ...]:
    paths = sorted((FOLDER / "rules").glob("*.yaml"))
    assert paths
    groups = [group for path in paths for group in yaml.safe_load(path.read_text())["groups"]]
    assert len({group["name"] for group in groups}) == len(groups)
    return tuple(rule for group in groups for rule in group["rules"])


def alerts() -> dict[str, Rule]:
    """The alerting rules by their names."""
    found = {rule["alert"]: rule for rule in _all() if "alert" in rule}
    assert len(found) == len([rule for rule in _all() if "alert" in rule]), "a name is used twice"
    return found


def recordings() -> dict[str, Rule]:
    """The recording rules by their names."""
    return {rule["record"]: rule for rule in _all() if "record" in rule}


def recorded_labels() -> dict[str, Labels]:
    """The labels of what is recorded."""
    found: dict[str, Labels] = {}
    for name, rule in recordings().items():
        found[name] = Judge(dict(found)).labels(promql.parse(rule["expr"])) or frozenset()
    return found
