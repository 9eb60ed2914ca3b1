"""RFC 9113, 6 and 7: each kind of frame, and codes of errors."""

from __future__ import annotations

from tests.integration.fanout_edge.attacker import body, headers
from tests.integration.fanout_edge.conformance import (
    ACK,
    BLOCK,
    CASE,
    CONTINUATION,
    DATA,
    END,
    END_HEADERS,
    END_STREAM,
    ENDED,
    FLOW,
    GOAWAY,
    HALF,
    HEADERS,
    MAX,
    NEXT,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SIZE,
    WINDOW_UPDATE,
    WITNESS,
    Answers,
    Case,
    Ignores,
    block,
    connection_error,
    number,
    opened,
    raw,
    requested,
    setting,
    stream_error,
)

CASES = [
    Case("6.1", "DATA of stream 0", raw(DATA, 0, 0, b"x"), connection_error(PROTOCOL)),
    Case(
        "6.1",
        "DATA with too much padding",
        opened() + raw(DATA, PADDED, CASE, b"\5xxxx"),
        connection_error(PROTOCOL),
    ),
    Case("6.1", "DATA that is padding alone", opened() + raw(DATA, PADDED, CASE, b"\4xxxx") + END, Answers()),
    Case(
        "6.1",
        "DATA with padding",
        opened() + raw(DATA, PADDED | END_STREAM, CASE, b"\4" + body(2) + b"xxxx"),
        Answers(),
    ),
    Case(
        "6.1",
        "DATA in several",
        opened() + raw(DATA, 0, CASE, body(2)[:3]) + raw(DATA, END_STREAM, CASE, body(2)[3:]),
        Answers(),
    ),
    Case(
        "6.1",
        "DATA without its padding's length",
        opened() + raw(DATA, PADDED, CASE),
        connection_error(PROTOCOL, SIZE),
    ),
    Case("6.2", "HEADERS of stream 0", raw(HEADERS, END_HEADERS, 0, BLOCK), connection_error(PROTOCOL)),
    Case(
        "6.2",
        "HEADERS with too much padding",
        raw(HEADERS, END_HEADERS | PADDED, CASE, bytes([len(BLOCK) + 1]) + BLOCK),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.2",
        "HEADERS with padding into the priority",
        raw(HEADERS, END_HEADERS | PADDED | PRIORITIZED, CASE, b"\6" + number(0) + b"\1" + b"\x82" * 3),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.2",
        "HEADERS with padding",
        raw(HEADERS, END_HEADERS | PADDED, CASE, b"\6" + BLOCK + bytes(6)) + END,
        Answers(),
    ),
    Case(
        "6.2",
        "HEADERS of padding alone",
        raw(HEADERS, PADDED, CASE, b"\6" + bytes(6)) + raw(CONTINUATION, END_HEADERS, CASE, BLOCK) + END,
        Answers(),
    ),
    Case(
        "6.2",
        "HEADERS too short for their priority",
        raw(HEADERS, END_HEADERS | PRIORITIZED, CASE, b"\0\0\0"),
        connection_error(SIZE),
    ),
    Case(
        "6.2",
        "HEADERS with priority",
        raw(HEADERS, END_HEADERS | PRIORITIZED, CASE, number(2**31) + b"\xff" + BLOCK) + END,
        Answers(),
    ),
    Case("6.3", "PRIORITY of stream 0", raw(PRIORITY, 0, 0, number(0) + b"\1"), connection_error(PROTOCOL)),
    Case("6.3", "PRIORITY of 4 bytes", opened() + raw(PRIORITY, 0, CASE, number(0)), stream_error(SIZE)),
    Case(
        "6.3",
        "PRIORITY of 6 bytes",
        opened() + raw(PRIORITY, 0, CASE, number(0) + b"\1\1"),
        stream_error(SIZE),
    ),
    Case("6.4", "RST_STREAM of stream 0", raw(RST_STREAM, 0, 0, number(8)), connection_error(PROTOCOL)),
    Case(
        "6.4", "RST_STREAM of 3 bytes", opened() + raw(RST_STREAM, 0, CASE, b"\0\0\0"), connection_error(SIZE)
    ),
    Case(
        "6.4",
        "RST_STREAM of 5 bytes",
        opened() + raw(RST_STREAM, 0, CASE, b"\0\0\0\0\0"),
        connection_error(SIZE),
    ),
    Case(
        "6.5",
        "acknowledgement that says something",
        raw(SETTINGS, ACK, 0, setting(4, 5)),
        connection_error(SIZE),
    ),
    Case("6.5", "acknowledgement that nobody waits for", raw(SETTINGS, ACK, 0) * 3, Ignores()),
    Case("6.5", "SETTINGS of a stream", raw(SETTINGS, 0, WITNESS, setting(3, 5)), connection_error(PROTOCOL)),
    Case("6.5", "SETTINGS cut short", raw(SETTINGS, 0, 0, setting(3, 5)[:3]), connection_error(SIZE)),
    Case(
        "6.5",
        "SETTINGS cut short after one",
        raw(SETTINGS, 0, 0, setting(3, 5) + b"\0\1"),
        connection_error(SIZE),
    ),
    Case("6.5.2", "ENABLE_PUSH of 2", raw(SETTINGS, 0, 0, setting(2, 2)), connection_error(PROTOCOL)),
    Case(
        "6.5.2", "INITIAL_WINDOW_SIZE of 2^31", raw(SETTINGS, 0, 0, setting(4, 2**31)), connection_error(FLOW)
    ),
    Case(
        "6.5.2",
        "MAX_FRAME_SIZE of 2^14-1",
        raw(SETTINGS, 0, 0, setting(5, 16_383)),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.5.2", "MAX_FRAME_SIZE of 2^24", raw(SETTINGS, 0, 0, setting(5, 2**24)), connection_error(PROTOCOL)
    ),
    Case(
        "6.5.2",
        "unknown parameters",
        raw(SETTINGS, 0, 0, setting(0, 1) + setting(7, 1) + setting(9, 7) + setting(0xFFFF, 2**32 - 1)),
        Ignores(),
    ),
    Case(
        "6.5.2",
        "the least and the most",
        raw(
            SETTINGS,
            0,
            0,
            setting(1, 2**32 - 1)
            + setting(2, 0)
            + setting(3, 0)
            + setting(4, MAX)
            + setting(5, 2**24 - 1)
            + setting(6, 2**32 - 1),
        ),
        Ignores(),
    ),
    Case(
        "6.5.3",
        "the last of several values counts",
        raw(SETTINGS, 0, 0, setting(4, 100) + setting(4, 0) + setting(4, 65_535)) + requested(),
        Answers(),
    ),
    Case(
        "6.6",
        "PUSH_PROMISE",
        opened() + raw(PUSH_PROMISE, END_HEADERS, CASE, number(2) + block()),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.6",
        "PUSH_PROMISE within a block",
        raw(HEADERS, 0, CASE, BLOCK) + raw(PUSH_PROMISE, END_HEADERS, CASE, number(2) + block()),
        connection_error(PROTOCOL),
    ),
    Case("6.7", "answer that nobody waits for", raw(PING, ACK, 0, b"not ours"), Ignores()),
    Case("6.7", "PING of a stream", raw(PING, 0, WITNESS, b"12345678"), connection_error(PROTOCOL)),
    Case("6.7", "PING of 6 bytes", raw(PING, 0, 0, b"123456"), connection_error(SIZE)),
    Case("6.7", "PING of 9 bytes", raw(PING, 0, 0, b"123456789"), connection_error(SIZE)),
    Case("6.8", "GOAWAY of a stream", raw(GOAWAY, 0, WITNESS, number(0) * 2), connection_error(PROTOCOL)),
    Case("6.8", "GOAWAY of 7 bytes", raw(GOAWAY, 0, 0, b"\0" * 7), connection_error(SIZE)),
    Case("6.9", "increment 0", raw(WINDOW_UPDATE, 0, 0, number(0)), connection_error(PROTOCOL)),
    Case(
        "6.9",
        "increment 0 of a stream",
        opened() + raw(WINDOW_UPDATE, 0, CASE, number(0)),
        stream_error(PROTOCOL),
    ),
    Case("6.9", "WINDOW_UPDATE of 3 bytes", raw(WINDOW_UPDATE, 0, 0, b"\0\0\1"), connection_error(SIZE)),
    Case("6.9", "WINDOW_UPDATE of 5 bytes", raw(WINDOW_UPDATE, 0, 0, b"\0\0\0\0\1"), connection_error(SIZE)),
    Case(
        "6.9",
        "reserved bit of an increment",
        opened() + raw(WINDOW_UPDATE, 0, CASE, number(2**31 + 5)) + END,
        Answers(),
    ),
    Case(
        "6.9.1",
        "window of the connection beyond 2^31-1",
        raw(WINDOW_UPDATE, 0, 0, number(MAX)) * 2,
        connection_error(FLOW),
    ),
    Case(
        "6.9.1",
        "window of a stream beyond 2^31-1",
        opened() + raw(WINDOW_UPDATE, 0, CASE, number(MAX)) * 2,
        stream_error(FLOW),
    ),
    Case(
        "6.9.1",
        "window of a request that has ended beyond 2^31-1",
        ENDED + raw(WINDOW_UPDATE, 0, CASE, number(MAX)) * 2,
        stream_error(FLOW),
    ),
    Case(
        "6.9.2",
        "INITIAL_WINDOW_SIZE that has a window overflow",
        opened()
        + raw(WINDOW_UPDATE, 0, CASE, number(MAX - 65_535))
        + raw(SETTINGS, 0, 0, setting(4, 65_536)),
        connection_error(FLOW),
    ),
    Case(
        "6.10",
        "CONTINUATION",
        raw(HEADERS, 0, CASE, BLOCK[:HALF]) + raw(CONTINUATION, END_HEADERS, CASE, BLOCK[HALF:]) + END,
        Answers(),
    ),
    Case(
        "6.10",
        "empty ones",
        raw(HEADERS, 0, CASE)
        + raw(CONTINUATION, 0, CASE)
        + raw(CONTINUATION, 0, CASE, BLOCK)
        + raw(CONTINUATION, END_HEADERS, CASE)
        + END,
        Answers(),
    ),
    Case(
        "6.10",
        "END_STREAM of the HEADERS before",
        raw(HEADERS, END_STREAM, CASE, block(*headers("/no.Such/Method")))
        + raw(CONTINUATION, END_HEADERS, CASE),
        Ignores(),
    ),
    Case(
        "6.10",
        "of stream 0",
        raw(HEADERS, 0, CASE, BLOCK) + raw(CONTINUATION, END_HEADERS, 0),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.10",
        "of another stream",
        raw(HEADERS, 0, CASE, BLOCK) + raw(CONTINUATION, END_HEADERS, NEXT),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.10",
        "after HEADERS that were whole",
        opened() + raw(CONTINUATION, END_HEADERS, CASE),
        connection_error(PROTOCOL),
    ),
    Case(
        "6.10",
        "after CONTINUATION that was the last",
        raw(HEADERS, 0, CASE, BLOCK) + raw(CONTINUATION, END_HEADERS, CASE) * 2,
        connection_error(PROTOCOL),
    ),
    Case(
        "6.10",
        "after DATA",
        opened() + raw(DATA, 0, CASE, b"\0") + raw(CONTINUATION, END_HEADERS, CASE),
        connection_error(PROTOCOL),
    ),
    Case(
        "7", "RST_STREAM with an unknown code", opened() + raw(RST_STREAM, 0, CASE, number(0xFF)), Ignores()
    ),
]
