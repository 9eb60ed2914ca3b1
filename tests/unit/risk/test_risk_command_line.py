"""`python -m services.risk.toxic_flow`: exit codes that need no database."""

from __future__ import annotations

from uuid import uuid4

import pytest

from services.risk import toxic_flow


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--user-id", "seven"],
        ["--user-id", str(uuid4()), "--history", "-1"],
        ["--user-id", str(uuid4()), "--evidence", "101"],
        ["--user-id", str(uuid4()), "--unknown"],
    ],
)
def test_a_wrong_command_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        toxic_flow.main(words)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("url", [None, "", "not a url", "http://localhost/x"])
def test_no_or_a_malformed_url_is_a_configuration_error(url: str | None, capsys: pytest.CaptureFixture[str]):
    words = ["--user-id", str(uuid4())] + ([] if url is None else ["--db-url", url])
    assert toxic_flow.main(words) == 3
    err = capsys.readouterr().err
    assert "--db-url" in err
    assert err.count("\n") == 1


def test_a_database_that_is_away_is_a_failure(capsys: pytest.CaptureFixture[str]):
    words = ["--user-id", str(uuid4()), "--db-url", "postgresql://nobody@127.0.0.1:1/nothing"]
    assert toxic_flow.main(words) == 1
    err = capsys.readouterr().err
    assert "cannot" in err
    assert err.count("\n") == 1
