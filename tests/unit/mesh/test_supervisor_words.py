"""What people are shown of a line that a service wrote."""

from __future__ import annotations

import json

import pytest

from mesh.supervisor import in_words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("REDIS_URL: is not a URL", "REDIS_URL: is not a URL"),
        (
            json.dumps({"message": "stopped", "error.message": "no database", "error.stack_trace": "a\nb"}),
            "stopped: no database",
        ),
        (json.dumps({"message": "stopped"}), "stopped"),
        (json.dumps({"msg": "else"}), '{"msg": "else"}'),
        ("[1]", "[1]"),
    ],
)
def test_a_log_line_is_put_in_words_and_any_other_left_as_it_is(line: str, words: str) -> None:
    assert in_words(line) == words
