"""docs/front-door.md is true: each limit has its setting with its default and its counter, and none is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from execution.ingest.v1 import frames_pb2 as pb
from services.common.worker import WorkerSettings
from services.ingest.metrics import CUT_REASONS
from services.ingest.settings import IngestSettings

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "front-door.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
_ROW = re.compile(r"^\| [^|]+ \| `([A-Z_]+)` \| ([^|]+) \| (reason|code) `([A-Za-z_]+)` \|$", re.MULTILINE)
ROWS = _ROW.findall(TEXT)
_WORDS = {"all": (), "no limit": 0}


def default_of(setting: str) -> object:
    return IngestSettings.model_fields[setting.lower()].default


def test_every_reason_has_a_row_and_every_row_a_counter():
    assert {name for *_, kind, name in ROWS if kind == "reason"} == set(CUT_REASONS)
    codes = {name.removeprefix("REJECT_CODE_") for name in pb.RejectCode.keys()}  # noqa: SIM118  (no dict)
    assert {name for *_, kind, name in ROWS if kind == "code"} <= codes


@pytest.mark.parametrize(("setting", "shown"), {row[0]: row[1] for row in ROWS}.items())
def test_the_default_is_the_documented_one(setting: str, shown: str):
    if shown in _WORDS:
        assert default_of(setting) == _WORDS[shown]
    else:
        assert default_of(setting) == float(shown.removesuffix(" s").replace(",", ""))


@pytest.mark.parametrize(("setting", "shown"), re.findall(r"`([A-Z_]+)` \(([0-9,]+)(?: s)?\)", TEXT))
def test_the_defaults_in_the_text_are_true(setting: str, shown: str):
    assert default_of(setting) == float(shown.replace(",", ""))


@pytest.mark.parametrize("setting", sorted(set(re.findall(r"`([A-Z][A-Z_]+)(?:=[^`]*)?`", TEXT))))
def test_every_setting_that_is_named_exists(setting: str):
    names = {name.upper() for name in IngestSettings.model_fields}
    assert setting in names | {name.removeprefix("REJECT_CODE_") for name, _ in pb.RejectCode.items()}


def test_every_number_among_the_settings_is_bounded():
    own = IngestSettings.model_fields.keys() - WorkerSettings.model_fields.keys()
    numbers = {name for name in own if type(default_of(name)) in (int, float)}
    assert len(numbers) > 30
    assert {name for name in numbers if not _has_upper_bound(name)} == set()


def _has_upper_bound(name: str) -> bool:
    metadata = IngestSettings.model_fields[name].metadata
    return any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in metadata)
