"""The dashboard: each query names only what is exported, and each panel can be read without its author."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import promql_parser as promql
import pytest

from tests.contract.prometheus.exported import REPOSITORY
from tests.contract.prometheus.promql import Judge
from tests.contract.prometheus.rules import recorded_labels

Panel = dict[str, Any]

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "execution-control-plane.json"
COLUMNS = 24


@cache
def _panels() -> dict[str, Panel]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert len({panel["title"] for panel in shown}) == len(shown)
    return {panel["title"]: panel for panel in shown}


def _labels(target: dict[str, Any], faults: list[str]) -> frozenset[str]:
    judge = Judge(recorded_labels(), faults)
    labels = judge.labels(promql.parse(target["expr"].replace("$__rate_interval", "5m")))
    return labels or frozenset()


@pytest.mark.parametrize("title", _panels())
def test_a_panel_asks_only_for_what_is_exported(title: str) -> None:
    targets = _panels()[title]["targets"]
    assert targets
    for target in targets:
        faults: list[str] = []
        labels = _labels(target, faults)
        assert faults == []
        # A line for each value of each label that the legend does not name would look like many of one name.
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == labels


@pytest.mark.parametrize("title", _panels())
def test_a_panel_says_its_unit_and_what_it_shows(title: str) -> None:
    panel = _panels()[title]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"]["uid"] == "${datasource}"
    assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < COLUMNS
        taken |= cells
