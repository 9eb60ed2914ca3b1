"""The page that says which test shows which promise of the edge names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "http2-edge.md"


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+|Test\w+)`", PAGE.read_text(encoding="utf-8")))
    folders = [ROOT / "tests" / level for level in ("unit", "property", "integration", "contract")]
    sources = [path for folder in folders for path in folder.rglob("test_*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    defined = set(re.findall(r"^(?:async )?def (test_\w+)|^(Test\w+) =", text, re.MULTILINE))
    assert len(named) > 70
    assert named <= {one or other for one, other in defined}, named - {one or other for one, other in defined}
