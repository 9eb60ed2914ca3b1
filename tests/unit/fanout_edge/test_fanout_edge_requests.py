"""Which requests are calls, and what is said to the others."""

from __future__ import annotations

import grpc
import pytest

from services.common.h2grpc.handlers import Method
from services.common.h2grpc.messages import StatusError, is_grpc, timeout_seconds
from services.common.h2grpc.requests import HttpRefusal, request_of

METHOD = Method("/a.B/C", lambda *_: None, False, False, None, None)
METHODS = {b"/a.B/C": METHOD}
HEADERS = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/a.B/C",
    b"content-type": b"application/grpc",
    b"te": b"trailers",
}


def ask(**changes: bytes | None):
    names = {
        name.replace("_", "-").removeprefix("pseudo-").encode(): value for name, value in changes.items()
    }
    named = {(b":" + name if name in (b"method", b"path") else name): value for name, value in names.items()}
    headers = [(name, value) for name, value in (HEADERS | named).items() if value is not None]
    return request_of(headers, METHODS, header_list_bytes_max=1_000)


def test_a_call_has_its_metadata_without_the_protocols_own_headers() -> None:
    request = ask(authorization=b"Bearer x", some_bin=b"AAEC", grpc_timeout=b"2S")
    assert request.method is METHOD
    assert request.metadata == (("authorization", "Bearer x"), ("some-bin", b"\0\1\2"))
    assert request.timeout_seconds == 2.0


@pytest.mark.parametrize(
    "value",
    [
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc;charset=x",
        b"application/grpc ; charset=x",
        b"Application/gRPC",
    ],
)
def test_content_types_of_grpc(value: bytes) -> None:
    assert is_grpc(value)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"application/json", b"application/grpc-web", b"application/grpcx", b"application/grpc x"],
)
def test_other_content_types_are_415(value: bytes | None) -> None:
    with pytest.raises(HttpRefusal, match="415"):
        ask(content_type=value)


def test_other_methods_than_post_are_405() -> None:
    with pytest.raises(HttpRefusal, match="405"):
        ask(method=b"GET")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"path": b"/a.B/D"}, grpc.StatusCode.UNIMPLEMENTED),
        ({"path": b"/"}, grpc.StatusCode.UNIMPLEMENTED),
        ({"grpc_encoding": b"gzip"}, grpc.StatusCode.UNIMPLEMENTED),
        ({"grpc_timeout": b"soon"}, grpc.StatusCode.INTERNAL),
        ({"grpc_timeout": b"123456789S"}, grpc.StatusCode.INTERNAL),
        ({"key_bin": b"???"}, grpc.StatusCode.INTERNAL),
        ({"key": b"x" * 1_000}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_calls_that_cannot_be_served_have_a_status(changes: dict[str, bytes], code: grpc.StatusCode) -> None:
    with pytest.raises(StatusError) as caught:
        ask(**changes)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3_600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 0.000005), (b"6n", 6e-9), (b"0S", 0)],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert timeout_seconds(value) == pytest.approx(seconds)
