from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import hpack
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from services.common import logs


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ours = logging.getLogger("services")
    ours_level = ours.level
    stream = io.StringIO()
    logs.configure("example", "DEBUG", output=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(ours_level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_the_standard_library_logs_ecs_json(output: io.StringIO) -> None:
    logging.getLogger("a.b").info("hello %s", "you", extra={"master.id": 7})
    (line,) = lines(output)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(line.pop("@timestamp")))
    assert line == {
        "log.level": "info",
        "log.logger": "a.b",
        "message": "hello you",
        "service.name": "example",
        "master.id": 7,
    }


def test_structlog_logs_the_same_fields(output: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(**{"session.id": "s1"}):
        logs.get("a.b").warning("hello %s", "you", **{"master.id": 7})
    (line,) = lines(output)
    line.pop("@timestamp")
    assert line == {
        "log.level": "warning",
        "log.logger": "a.b",
        "message": "hello you",
        "service.name": "example",
        "master.id": 7,
        "session.id": "s1",
    }


@pytest.mark.parametrize("way", ["stdlib", "structlog", "stdlib_object"])
def test_exceptions_have_type_message_and_stack(output: io.StringIO, way: str) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        if way == "stdlib":
            logging.getLogger("x").exception("failed")
        elif way == "structlog":
            logs.get("x").exception("failed")
        else:
            logging.getLogger("x").error("failed", exc_info=error)
    (line,) = lines(output)
    assert (line["message"], line["error.type"], line["error.message"]) == ("failed", "KeyError", "'gone'")
    assert "Traceback" in str(line["error.stack_trace"])
    assert "exc_info" not in line
    assert "exception" not in line


def test_lines_inside_a_span_carry_its_ids(output: io.StringIO) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
        logging.getLogger("x").info("in")
    context = span.get_span_context()
    (line,) = lines(output)
    assert line["trace.id"] == trace.format_trace_id(context.trace_id)
    assert line["span.id"] == trace.format_span_id(context.span_id)


def test_levels_are_kept_and_noisy_libraries_are_quiet(output: io.StringIO) -> None:
    logs.configure("example", "WARNING", output=output)
    logging.getLogger("x").info("no")
    logs.get("x").info("no")
    logging.getLogger("asyncio").info("no")
    logging.getLogger("x").warning("yes")
    assert [line["message"] for line in lines(output)] == ["yes"]


def test_libraries_never_tell_what_passes_through_them(output: io.StringIO) -> None:
    """HPACK's tells every header that it reads, tokens too; none of them is to say at DEBUG what it works on."""
    block = hpack.Encoder().encode([("authorization", "Bearer a-license-token")])
    assert hpack.Decoder().decode(block)
    logging.getLogger("any.library").debug("Bearer a-license-token")
    assert output.getvalue() == ""
    logging.getLogger("services.any").debug("ours")
    assert [line["message"] for line in lines(output)] == ["ours"]


def test_each_record_is_one_line_and_bounded(output: io.StringIO) -> None:
    logging.getLogger("x").info("a\nb")
    logging.getLogger("x").info("y" * 100_000)
    one, long = lines(output)
    assert one["message"] == "a\nb"
    assert len(str(long["message"])) == 8_192


def test_what_json_does_not_know_becomes_text(output: io.StringIO) -> None:
    logging.getLogger("x").info("hi", extra={"thing": object, "raw": b"\xff"})
    assert "object" in str(lines(output)[0]["thing"])


def test_warnings_are_logged(output: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "old thing" in str(lines(output)[0]["message"])


def test_logs_go_to_stdout_by_default(capsys: pytest.CaptureFixture[str], output: io.StringIO) -> None:
    logs.configure("example", output=sys.stdout)
    logging.getLogger("x").info("there")
    assert json.loads(capsys.readouterr().out)["message"] == "there"
