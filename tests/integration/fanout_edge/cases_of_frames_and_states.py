"""RFC 9113, 3 to 5: the preface, frames of any kind, and the states of streams."""

from __future__ import annotations

from tests.integration.fanout_edge.attacker import body
from tests.integration.fanout_edge.conformance import (
    BLOCK,
    CANCEL,
    CASE,
    CLOSED,
    COMPRESSION,
    CONTINUATION,
    DATA,
    END,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NEXT,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL,
    SETTINGS,
    SIZE,
    WINDOW_UPDATE,
    WITNESS,
    Answers,
    Case,
    Ignores,
    connection_error,
    number,
    opened,
    raw,
    requested,
    stream_error,
)

CASES = [
    Case("3.4", "frames after the preface", requested(), Answers()),
    Case(
        "4.1", "unknown type", raw(0x20, 0, 0, b"what") + raw(0x20, 0xFF, CASE, b"") + requested(), Answers()
    ),
    Case("4.1", "unknown type on an idle stream", raw(0x16, 0, 1001, b"whatever") + requested(), Answers()),
    Case(
        "4.1",
        "ALTSVC of a client",
        raw(0xA, 0, 0, b"\0\0") + raw(0xA, 0, CASE, b"x") + requested(),
        Answers(),
    ),
    Case("4.1", "PRIORITY_UPDATE", raw(0x10, 0, 0, number(CASE) + b"u=1") + requested(), Answers()),
    Case(
        "4.1",
        "undefined flags",
        raw(PING, 0xFE, 0, b"undefine") + opened() + raw(DATA, 0xF6 | END_STREAM, CASE, body(2)),
        Answers(),
    ),
    Case(
        "4.1",
        "reserved bit",
        raw(PING, 0, 2**31, b"reserved") + raw(HEADERS, END_HEADERS, CASE | 2**31, BLOCK) + END,
        Answers(),
    ),
    Case(
        "4.2",
        "DATA of 2^14 bytes",
        opened() + raw(DATA, 0, CASE, b"\0\0\0\x4f\xfb" + b"x" * 16_379),
        Ignores(),
    ),
    Case("4.2", "DATA of more", opened() + raw(DATA, 0, CASE, b"x" * 16_385), connection_error(SIZE)),
    Case("4.2", "HEADERS of more", raw(HEADERS, END_HEADERS, CASE, b"x" * 16_385), connection_error(SIZE)),
    Case("4.2", "SETTINGS of more", raw(SETTINGS, 0, 0, b"x" * 16_386), connection_error(SIZE)),
    Case("4.2", "unknown of more", raw(0x20, 0, 0, b"x" * 16_385), connection_error(SIZE)),
    Case(
        "4.3",
        "block that cannot be decoded",
        raw(HEADERS, END_HEADERS, CASE, b"\xff\xff\xff\xff\xff"),
        connection_error(COMPRESSION),
    ),
    Case(
        "4.3",
        "PRIORITY within a block",
        raw(HEADERS, 0, CASE, BLOCK) + raw(PRIORITY, 0, CASE, number(0) + b"\1"),
        connection_error(PROTOCOL),
    ),
    Case(
        "4.3",
        "HEADERS of another stream within a block",
        raw(HEADERS, 0, CASE, BLOCK) + opened(NEXT),
        connection_error(PROTOCOL),
    ),
    Case(
        "4.3",
        "DATA within a block",
        raw(HEADERS, 0, CASE, BLOCK) + raw(DATA, 0, WITNESS, b""),
        connection_error(PROTOCOL),
    ),
    Case("5.1", "idle: DATA", raw(DATA, END_STREAM, CASE, b"x"), connection_error(PROTOCOL)),
    Case("5.1", "idle: RST_STREAM", CANCEL, connection_error(PROTOCOL)),
    Case("5.1", "idle: WINDOW_UPDATE", raw(WINDOW_UPDATE, 0, CASE, number(100)), connection_error(PROTOCOL)),
    Case(
        "5.1", "idle: CONTINUATION", raw(CONTINUATION, END_HEADERS, CASE, BLOCK), connection_error(PROTOCOL)
    ),
    Case("5.1", "idle: PRIORITY", raw(PRIORITY, 0, CASE, number(0) + b"\1") + requested(), Answers()),
    Case(
        "5.1",
        "idle: PRIORITY of a later one, HEADERS of an earlier",
        raw(PRIORITY, 0, NEXT, number(0) + b"\1") + requested(),
        Answers(),
    ),
    Case(
        "5.1",
        "half-closed (remote): DATA",
        requested(CASE, 10**9) + raw(DATA, END_STREAM, CASE, b"x"),
        stream_error(CLOSED),
    ),
    Case("5.1", "half-closed (remote): HEADERS", requested(CASE, 10**9) + opened(), stream_error(CLOSED)),
    Case(
        "5.1",
        "half-closed (remote): CONTINUATION",
        requested(CASE, 10**9) + raw(CONTINUATION, END_HEADERS, CASE, BLOCK),
        connection_error(PROTOCOL, CLOSED),
    ),
    Case(
        "5.1",
        "half-closed (remote): WINDOW_UPDATE, PRIORITY",
        requested() + raw(WINDOW_UPDATE, 0, CASE, number(100)) + raw(PRIORITY, 0, CASE, number(0) + b"\1"),
        Answers(),
    ),
    Case("5.1", "half-closed (remote): RST_STREAM", requested(CASE, 10**9) + CANCEL, Ignores()),
    Case(
        "5.1",
        "closed by reset: DATA",
        requested(CASE, 10**9) + CANCEL + raw(DATA, END_STREAM, CASE, b"x"),
        stream_error(CLOSED),
    ),
    Case("5.1", "closed by reset: HEADERS", requested(CASE, 10**9) + CANCEL + opened(), stream_error(CLOSED)),
    Case(
        "5.1",
        "closed by reset: CONTINUATION",
        requested(CASE, 10**9) + CANCEL + raw(CONTINUATION, END_HEADERS, CASE, BLOCK),
        connection_error(PROTOCOL, CLOSED),
    ),
    Case(
        "5.1",
        "closed by reset: PRIORITY, WINDOW_UPDATE, RST_STREAM",
        requested(CASE, 10**9)
        + CANCEL
        + raw(PRIORITY, 0, CASE, number(0) + b"\1")
        + raw(WINDOW_UPDATE, 0, CASE, number(100))
        + CANCEL,
        Ignores(),
    ),
    Case("5.1.1", "even number", opened(CASE + 1), connection_error(PROTOCOL)),
    Case("5.1.1", "smaller number", requested(NEXT) + opened(CASE), connection_error(PROTOCOL)),
    Case(
        "5.3.1",
        "HEADERS that depend on themselves",
        raw(HEADERS, END_HEADERS | PRIORITIZED, CASE, number(CASE) + b"\1" + BLOCK),
        stream_error(PROTOCOL),
    ),
    Case(
        "5.3.1",
        "PRIORITY that depends on itself",
        raw(PRIORITY, 0, CASE, number(CASE) + b"\1"),
        connection_error(PROTOCOL),
    ),
    Case(
        "5.5",
        "unknown frame within a block",
        raw(HEADERS, 0, CASE, BLOCK) + raw(0x20, 0, CASE, b"x"),
        connection_error(PROTOCOL),
    ),
    Case(
        "5.1",
        "closed by reset, before another one was opened: CONTINUATION",
        opened() + CANCEL + opened(NEXT) + raw(CONTINUATION, END_HEADERS, CASE, BLOCK),
        connection_error(PROTOCOL),
    ),
    Case("5.1", "closed: DATA", raw(DATA, END_STREAM, CASE, b"x"), stream_error(CLOSED), requested()),
    Case("5.1", "closed: HEADERS", opened(), connection_error(CLOSED), requested()),
    Case(
        "5.1",
        "closed: CONTINUATION",
        raw(CONTINUATION, END_HEADERS, CASE, BLOCK),
        connection_error(PROTOCOL, CLOSED),
        requested(),
    ),
    Case(
        "5.1",
        "closed: PRIORITY, WINDOW_UPDATE, RST_STREAM",
        raw(PRIORITY, 0, CASE, number(0) + b"\1") + raw(WINDOW_UPDATE, 0, CASE, number(100)) + CANCEL,
        Ignores(),
        requested(),
    ),
    Case(
        "5.1",
        "closed: window beyond 2^31-1",
        raw(WINDOW_UPDATE, 0, CASE, number(2**31 - 1)) * 2,
        Ignores(),
        requested(),
    ),
]
