"""What `ecp check docs` finds, and that the documents of this clone are without it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mesh import documents
from mesh.clone import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "settings.py").write_text("log_shards: int = 1\nsignal_ingest_latency_ms = 0\n")
    (tmp_path / "docs" / "other.md").write_text("# Its `heading`, and more\n")
    return tmp_path


def faults(clone: Path, text: str) -> list[str]:
    (clone / "README.md").write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    subprocess.run(["git", "add", "."], cwd=clone, check=True)
    return documents.faults(clone)


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/other.md) [b](docs/other.md#its-heading-and-more) [c](#here) [d](https://example.org/x)\n# Here",
        "    ./ecp demo      # ./ecp no-such",
        "    ./ecp test -k gap tests/unit",
        "`./ecp demo --seconds 30` and `ecp admin subscription list --user-id x`; `ecp bench NAME --json FILE`",
        "Run `ecp up`. ecp is also a word, and `ecp-run-x` a folder.",
        "`LOG_SHARDS=4`, `log_shards`, `signal_ingest_latency_ms_bucket`, `PIP_INDEX_URL`",
    ],
)
def test_what_is_so_is_no_fault(clone: Path, text: str) -> None:
    assert faults(clone, text) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n[a](docs/gone.md)", "README.md:2: there is no docs/gone.md"),
        ("[a](docs/other.md#gone)", "README.md:1: docs/other.md has no heading for #gone"),
        ("[a](#gone)", "README.md:1: README.md has no heading for #gone"),
        ("    ./ecp dmeo --seconds 5   # plays", "README.md:1: ecp dmeo --seconds 5: no command dmeo"),
        ("`ecp demo --sconds=5`", "README.md:1: ecp demo --sconds=5: no option --sconds"),
        ("`ecp admin user lst`", "README.md:1: ecp admin user lst: no command lst"),
        ("`LOG_SHRADS=4`", "README.md:1: nothing in the source is called LOG_SHRADS"),
        ("`signal_total`", "README.md:1: nothing in the source is called signal_total"),
    ],
)
def test_what_is_not_so_is_told_with_its_place(clone: Path, text: str, fault: str) -> None:
    assert faults(clone, text) == [fault]


def test_the_documents_of_this_clone_name_only_what_there_is() -> None:
    assert documents.faults(ROOT) == []
