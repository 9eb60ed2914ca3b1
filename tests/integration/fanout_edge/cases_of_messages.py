"""RFC 9113, 8, and RFC 7541: requests that are malformed, and header blocks that cannot be decoded."""

from __future__ import annotations

from tests.integration.fanout_edge.attacker import body, headers
from tests.integration.fanout_edge.conformance import (
    BLOCK,
    CASE,
    COMPRESSION,
    DATA,
    END,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PROTOCOL,
    Answers,
    Case,
    Ignores,
    asked,
    block,
    connection_error,
    opened,
    raw,
    stream_error,
)

CASES = [
    Case("8.1", "HEADERS in the middle", opened() + opened() + END, stream_error(PROTOCOL)),
    Case(
        "8.1",
        "trailers",
        opened()
        + raw(DATA, 0, CASE, body(2))
        + raw(HEADERS, END_HEADERS | END_STREAM, CASE, block(("x", "y"))),
        Answers(),
    ),
    Case(
        "8.1",
        "trailers without a name",
        opened() + raw(DATA, 0, CASE, body(2)) + raw(HEADERS, END_HEADERS | END_STREAM, CASE),
        Answers(),
    ),
    Case(
        "8.1.1",
        "content-length that is right",
        asked(more=(("content-length", str(len(body(2)))),)),
        Answers(),
    ),
    Case(
        "8.1.1",
        "content-length that is too small",
        asked(more=(("content-length", "1"),)),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length that is too large",
        asked(more=(("content-length", "1000"),)),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length of several DATA that is too small",
        opened(CASE, *headers(), ("content-length", "4"))
        + raw(DATA, 0, CASE, body(2)[:3])
        + raw(DATA, END_STREAM, CASE, body(2)[3:]),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length without DATA",
        raw(HEADERS, END_HEADERS | END_STREAM, CASE, block(*headers(), ("content-length", "7"))),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length that is no number",
        asked(more=(("content-length", "seven"),)),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length twice, unlike",
        asked(more=(("content-length", "7"), ("content-length", "8"))),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.1.1",
        "content-length, ended by trailers",
        opened(CASE, *headers(), ("content-length", "100"))
        + raw(DATA, 0, CASE, body(2))
        + raw(HEADERS, END_HEADERS | END_STREAM, CASE, block(("x", "y"))),
        stream_error(PROTOCOL),
    ),
    Case("8.2.1", "upper case", asked(more=(("UPPER", "x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "space in a name", asked(more=(("a b", "x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "colon in a name", asked(more=(("a:b", "x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "name beyond ASCII", asked(more=(("\u00e9", "x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "empty name", asked(more=(("", "x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "NUL in a value", asked(more=(("a", "x\0y"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "line feed in a value", asked(more=(("a", "x\ny"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "carriage return in a value", asked(more=(("a", "x\ry"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "space before a value", asked(more=(("a", " x"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "tab behind a value", asked(more=(("a", "x\t"),)), stream_error(PROTOCOL)),
    Case("8.2.1", "empty value", asked(more=(("a", ""),)), Answers()),
    *(
        Case("8.2.2", name, asked(more=((name, value),)), stream_error(PROTOCOL))
        for name, value in (
            ("connection", "keep-alive"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
        )
    ),
    Case("8.2.2", "te: trailers, deflate", asked(("te", "trailers, deflate")), stream_error(PROTOCOL)),
    Case("8.2.2", "no te", asked(("te", None)), Answers()),
    Case("8.2.3", "cookies in pieces", asked(more=(("cookie", "a=b"), ("cookie", "c=d"))), Answers()),
    Case("8.3", "unknown pseudo-header", asked(first=((":what", "x"),)), stream_error(PROTOCOL)),
    Case("8.3", "pseudo-header of responses", asked(first=((":status", "200"),)), stream_error(PROTOCOL)),
    Case(
        "8.3",
        "pseudo-header of informational responses",
        asked(first=((":status", "100"),)),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.3",
        "pseudo-header in trailers",
        opened() + raw(HEADERS, END_HEADERS | END_STREAM, CASE, block((":method", "POST"))),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.3",
        ":status in trailers",
        opened() + raw(HEADERS, END_HEADERS | END_STREAM, CASE, block((":status", "100"))),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.3",
        "pseudo-header after a header",
        asked((":path", None), more=((":path", "/x"),)),
        stream_error(PROTOCOL),
    ),
    *(
        Case("8.3.1", f"no {name}", asked((name, None)), stream_error(PROTOCOL))
        for name in (":method", ":scheme", ":path")
    ),
    *(
        Case("8.3.1", f"{name} twice", asked(first=((name, value),)), stream_error(PROTOCOL))
        for name, value in headers()[:4]
    ),
    Case("8.3.1", "empty :path", asked((":path", "")), stream_error(PROTOCOL)),
    Case(
        "8.3.1",
        "host that is another than :authority",
        asked(more=(("host", "elsewhere"),)),
        stream_error(PROTOCOL),
    ),
    Case(
        "8.3.1",
        "host instead of :authority",
        asked((":authority", None), more=(("host", "localhost"),)),
        Answers(),
    ),
    Case("8.3.1", "no :authority", asked((":authority", None)), stream_error(PROTOCOL)),
    Case("8.5", "CONNECT with a path", asked((":method", "CONNECT")), stream_error(PROTOCOL)),
    Case(
        "8.5",
        "CONNECT that asks for a protocol nobody offered",
        asked((":method", "CONNECT"), first=((":protocol", "websocket"),)),
        Ignores(),
    ),
    Case(
        "RFC 7541 2.3.3",
        "index beyond the tables",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\xff\x7f"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 2.3.3",
        "name beyond the tables",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\x7f\x7f\1x"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 4.2",
        "table size after a header",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\x20"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 4.2",
        "table size before headers",
        raw(HEADERS, END_HEADERS, CASE, b"\x20\x3f\xe1\x1f" + BLOCK) + END,
        Answers(),
    ),
    Case(
        "RFC 7541 5.1",
        "integer without end",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\xff" * 40),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 5.1",
        "integer cut off",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\xff"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 5.2",
        "padding of more than 7 bits",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\0\1x\x83\x1c\x64\xff" + b"\0\1x\x82\x07\xff"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 5.2",
        "padding of zeros",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\0\1x\x81\x00"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 5.2",
        "EOS in a text",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\0\1x\x84\xff\xff\xff\xff"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 5.2",
        "text cut off",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\0\1x\x7f"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 6.1",
        "index 0",
        raw(HEADERS, END_HEADERS, CASE, BLOCK + b"\x80"),
        connection_error(COMPRESSION),
    ),
    Case(
        "RFC 7541 6.2",
        "literals of each kind",
        raw(
            HEADERS,
            END_HEADERS,
            CASE,
            BLOCK + b"\x40\1a\1b" + b"\0\1c\1d" + b"\x10\1e\1f" + b"\xbe" + b"\x7e\1g" + b"\x0f\x2f\1h",
        )
        + END,
        Answers(),
    ),
    Case(
        "RFC 7541 6.3",
        "table larger than told",
        raw(HEADERS, END_HEADERS, CASE, b"\x3f\xe2\x1f" + BLOCK),
        connection_error(COMPRESSION),
    ),
]
