"""When a connection is pinged, given up, replaced, and how long its calls have then."""

from __future__ import annotations

from services.common import settings
from services.common.h2grpc import Http2Settings
from services.common.h2grpc.lifetime import Lifetime, Step


class EdgeSettings(Http2Settings):
    service_name = "edge"


def lifetime(**overrides: object) -> Lifetime:
    values = {
        "service_token": "service-token-of-the-tests",
        "http2_keepalive_seconds": 60,
        "http2_keepalive_timeout_seconds": 20,
        "http2_handshake_seconds_max": 10,
        "http2_idle_seconds_max": 900,
    }
    return Lifetime(settings.load(EdgeSettings, **(values | overrides)), 1_000.0)


def step(
    of: Lifetime, at: float, *, begun: bool = True, calls: bool = True, takes: bool = True
) -> Step | None:
    return of.step(1_000.0 + at, has_begun=begun, has_calls=calls, takes_calls=takes)


def test_a_peer_that_says_nothing_at_first_is_given_up() -> None:
    one = lifetime()
    assert step(one, 10, begun=False) is None
    assert step(one, 10.1, begun=False) is Step.HANDSHAKE_OVERDUE


def test_a_silent_peer_is_pinged_once_and_given_up_when_it_does_not_answer() -> None:
    one = lifetime()
    assert step(one, 60) is None
    assert step(one, 60.1) is Step.PING
    assert step(one, 80) is None
    assert step(one, 80.2) is Step.PEER_IS_DEAD


def test_an_answer_begins_the_silence_anew() -> None:
    one = lifetime()
    assert step(one, 61) is Step.PING
    one.heard(1_062.0)
    assert step(one, 121) is None
    assert step(one, 122.1) is Step.PING


def test_a_connection_without_calls_is_let_go_and_one_with_a_call_never() -> None:
    one = lifetime(http2_keepalive_seconds=5_000)
    assert step(one, 2_000, calls=True) is None
    one.calls_ended(3_000.0)
    assert step(one, 2_900, calls=False) is None
    assert step(one, 2_900.1, calls=False) is Step.IDLE


def test_age_is_spread_by_a_tenth() -> None:
    ends = set()
    for _ in range(200):
        one = lifetime(grpc_connection_age_seconds_max=100, http2_keepalive_seconds=5_000)
        assert step(one, 89.9) is None
        assert step(one, 110.1) is Step.AGED
        ends.add(step(one, 100))
    assert ends == {None, Step.AGED}


def test_draining_takes_a_round_trip_then_half_the_grace_then_all_of_it() -> None:
    one = lifetime()
    assert one.begin_drain(1_000.0, 30.0)
    assert not one.begin_drain(1_001.0, 99.0)
    assert one.is_draining
    assert step(one, 15) is None
    assert step(one, 15.1) is Step.LAST_CALL
    assert step(one, 15.1, takes=False) is None
    assert step(one, 30.1, takes=False) is Step.DRAINED
