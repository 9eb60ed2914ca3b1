"""The page that says which test shows which promise of live streams names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "live-streams.md"


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+|Test\w+)`", PAGE.read_text(encoding="utf-8")))
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    found = re.findall(r"^(?:async )?def (test_\w+)|^(Test\w+) =", text, re.MULTILINE)
    defined = {one or other for one, other in found}
    assert len(named) > 40
    assert named <= defined, named - defined
