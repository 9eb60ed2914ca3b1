"""gRPC over HTTP/2 (PROTOCOL-HTTP2.md): what a request may be, and what is said to one that is not."""

from __future__ import annotations

from tests.integration.fanout_edge.attacker import body, headers
from tests.integration.fanout_edge.conformance import (
    BLOCK,
    CANCEL,
    CASE,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    Answers,
    Case,
    Ignores,
    Says,
    asked,
    block,
    number,
    opened,
    raw,
    requested,
)
from tests.integration.fanout_edge.counting_service import ACKNOWLEDGE

OK, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED = "0", "5", "8", "12", "13", "16"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
ONE = body(2)


def says(status: str) -> Says:
    return Says("200", status)


def refused(status: str) -> Says:
    return Says(status, None)


def told(*pieces: bytes, path: str | None = None) -> bytes:
    """A request with these DATA."""
    opening = opened() if path is None else opened(CASE, *headers(path))
    *parts, last = pieces
    return opening + b"".join(raw(DATA, 0, CASE, part) for part in parts) + raw(DATA, END_STREAM, CASE, last)


def timed(value: str) -> bytes:
    return asked(more=(("grpc-timeout", value),))


def binary(value: str) -> bytes:
    return asked(more=(("some-bin", value),))


def without_data(method: str) -> bytes:
    return raw(HEADERS, END_HEADERS | END_STREAM, CASE, block((":method", method), *headers()[1:]))


HTTP = [
    *(
        Case("HTTP", method, without_data(method), refused("405"))
        for method in ("GET", "HEAD", "PUT", "OPTIONS")
    ),
    Case(
        "HTTP",
        "CONNECT",
        raw(HEADERS, END_HEADERS, CASE, block((":method", "CONNECT"), (":authority", "x:1"))),
        refused("405"),
    ),
    *(
        Case("content-type", kind, asked(("content-type", kind)), refused("415"))
        for kind in (
            "application/json",
            "application/grpc-web",
            "application/grpcx",
            "text/plain;application/grpc",
        )
    ),
    Case("content-type", "none", asked(("content-type", None)), refused("415")),
    *(
        Case("content-type", kind, asked(("content-type", kind)), Answers())
        for kind in (
            "application/grpc+proto",
            "application/grpc+json",
            "application/grpc;charset=utf-8",
            "application/grpc ; charset=utf-8",
            "Application/gRPC",
        )
    ),
    Case("te", "none", asked(("te", None)), Answers()),
    Case("te", "in capitals", asked(("te", "Trailers")), Answers()),
    Case("expect", "100-continue", asked(more=(("expect", "100-continue"),)), Answers()),
]
PATHS = [
    Case(":path", path, asked((":path", path)), says(UNIMPLEMENTED))
    for path in (
        "/a.B/C",
        "/execution.fanout.v1.FanoutService/Nothing",
        "/",
        "//",
        "nothing",
        "/execution.fanout.v1.FanoutService/Subscribe?x=1",
        "/caf\u00e9",
        HEALTH.lower(),
    )
]
TIMEOUTS = [
    *(
        Case("grpc-timeout", repr(value), timed(value), says(INTERNAL))
        for value in ("", "1", "S", "1s", "-1S", "+1S", "1.5S", "1 S", "123456789S", "\u0661S", "0x1S")
    ),
    *(
        Case("grpc-timeout", value, timed(value), Answers())
        for value in ("99999999H", "00000020S", "99999999n")
    ),
]
MESSAGES = [
    Case("message", "byte by byte", told(*(ONE[at : at + 1] for at in range(len(ONE)))), Answers()),
    Case("message", "none", told(b""), says(UNIMPLEMENTED)),
    Case(
        "message",
        "none, ended by HEADERS",
        raw(HEADERS, END_HEADERS | END_STREAM, CASE, BLOCK),
        says(UNIMPLEMENTED),
    ),
    Case("message", "two", told(ONE * 2), says(UNIMPLEMENTED)),
    Case("message", "two, in two DATA", told(ONE, ONE), says(UNIMPLEMENTED)),
    Case("message", "one and a part", told(ONE + b"\0\0"), says(INTERNAL)),
    Case("message", "length too large", told(b"\0\0\0\0\xff" + b"x"), says(INTERNAL)),
    Case("message", "length too small", told(b"\0\0\0\0\1" + b"xyzzy"), says(INTERNAL)),
    Case("message", "prefix cut off", told(b"\0\0\0"), says(INTERNAL)),
    Case("message", "of no bytes", told(bytes(5), path=ACKNOWLEDGE), says(OK)),
    Case("message", "a byte too large", told(b"\0\0\x40\0\1"), says(EXHAUSTED)),
    Case("message", "of 4 GiB", told(b"\0\xff\xff\xff\xff"), says(EXHAUSTED)),
    Case("message", "not of its type", told(b"\0\0\0\0\2\xff\xff"), says(INTERNAL)),
    *(Case("message", f"flag {flag}", told(bytes([flag]) + ONE[1:]), says(INTERNAL)) for flag in (1, 2, 255)),
    Case(
        "message",
        "of an encoding that is not spoken",
        asked(more=(("grpc-encoding", "gzip"),)),
        says(UNIMPLEMENTED),
    ),
    Case("message", "of no encoding", asked(more=(("grpc-encoding", "identity"),)), Answers()),
    Case("stream of messages", "none", told(b"", path=REFLECTION), says(OK)),
    Case("stream of messages", "a part of one", told(b"\0\0\0", path=REFLECTION), says(INTERNAL)),
    Case("stream of messages", "compressed", told(b"\1\0\0\0\0", path=REFLECTION), says(INTERNAL)),
    Case(
        "stream of messages", "not of its type", told(b"\0\0\0\0\2\xff\xff", path=REFLECTION), says(INTERNAL)
    ),
    Case(
        "status", "of a service that is not there", told(b"\0\0\0\0\6\n\4what", path=HEALTH), says(NOT_FOUND)
    ),
]
METADATA = [
    *(
        Case("metadata", f"-bin {value!r}", binary(value), Answers())
        for value in ("", "AAEC", "AAE=", "AAE", "AAEC,AAEC", "AAEC, AAE=")
    ),
    *(
        Case("metadata", f"-bin {value!r}", binary(value), says(INTERNAL))
        for value in ("!!!", "A", "A=A=", "caf\u00e9")
    ),
    Case("metadata", "beyond ASCII", asked(more=(("some", "caf\u00e9"),)), Answers()),
    Case("metadata", "many", asked(more=(("some", "thing"),) * 300), Answers()),
    Case("metadata", "too many", asked(more=(("some", "thing"),) * 500), says(EXHAUSTED)),
    Case(
        "metadata",
        "that says nothing to be traced",
        asked(more=(("traceparent", "\u00ff"), ("tracestate", "=" * 600), ("baggage", "a=%"))),
        Answers(),
    ),
    Case("metadata", "of responses", asked(more=(("grpc-status", "5"), ("grpc-message", "no"))), Answers()),
    Case(
        "metadata",
        "in trailers",
        opened()
        + raw(DATA, 0, CASE, ONE)
        + raw(HEADERS, END_HEADERS | END_STREAM, CASE, block(("grpc-status", "5"))),
        Answers(),
    ),
    *(
        Case("token", name, asked(("authorization", value)), says(UNAUTHENTICATED))
        for name, value in (
            ("none", None),
            ("empty", ""),
            ("of another scheme", "Basic eDp5"),
            ("beyond ASCII", "Bearer caf\u00e9"),
            ("too long", "Bearer " + "x" * 5_000),
        )
    ),
    Case("token", "two", asked(more=(("authorization", "Bearer another"),)), says(UNAUTHENTICATED)),
]
# The faults that gRPC's interop tests have a server make, made by a client.
INTEROP = [
    Case("interop", "reset after headers", opened() + CANCEL, Ignores()),
    Case("interop", "reset during data", opened() + raw(DATA, 0, CASE, ONE[:3]) + CANCEL, Ignores()),
    Case("interop", "reset after data", requested(CASE, 10**9) + CANCEL, Ignores()),
    Case("interop", "reset with no error", opened() + raw(RST_STREAM, 0, CASE, number(0)), Ignores()),
]
CASES = [*HTTP, *PATHS, *TIMEOUTS, *MESSAGES, *METADATA, *INTEROP]
