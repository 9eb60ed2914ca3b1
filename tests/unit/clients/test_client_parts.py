"""The small parts of the clients: conversion, checks, clocks, waits, addresses, settings, status details, outcomes."""

from __future__ import annotations

import ssl
from decimal import Decimal
from pathlib import Path

import pytest
from google.rpc import status_pb2

from ecp_client import signals
from ecp_client.addresses import parse_address
from ecp_client.backoff import Backoff
from ecp_client.clock import ESTIMATE_AGE_US_MAX, ServerClock
from ecp_client.copying import Action, Decision, Reason
from ecp_client.errors import ClientError, SettingsError, SignalInvalidError
from ecp_client.master import MasterSettings
from ecp_client.master.endings import End, Outlook
from ecp_client.master.pacing import Pacing
from ecp_client.positions import Position
from ecp_client.subscriber import Report, SubscriberSettings
from ecp_client.subscriber.endings import Offer, positions_unavailable, stream_end
from ecp_client.subscriber.endings import Outlook as StreamOutlook
from ecp_client.subscriber.reporting import Outcomes
from ecp_client.telling import Teller
from execution.common.v1 import signal_pb2 as pb
from execution.fanout.v1 import fanout_service_pb2
from execution.risk.v1 import risk_service_pb2 as risk_pb
from services.ingest.domain.rules import problem_of
from tests.unit.clients.made import sequenced, signal


class TestFixedPoint:
    @pytest.mark.parametrize(
        ("value", "scaled"),
        [("1.07140", 107_140_000), ("0.01", 1_000_000), (2, 200_000_000), (Decimal("1e-8"), 1), ("-3", -300_000_000)],
    )  # fmt: skip
    def test_there_and_back(self, value: str | int | Decimal, scaled: int) -> None:
        assert signals.to_e8(value) == scaled
        assert signals.from_e8(scaled) == Decimal(value)

    @pytest.mark.parametrize("value", ["1e-9", "nan", "inf"])
    def test_what_does_not_fit_is_refused(self, value: str) -> None:
        with pytest.raises(ValueError, match="not a multiple"):
            signals.to_e8(value)

    @pytest.mark.parametrize("value", ["abc", "", "1,5", 0.1, 0.5])
    def test_words_and_all_floats_are_refused(self, value: object) -> None:
        with pytest.raises(ValueError, match=r"not a number|is a float"):
            signals.to_e8(value)


LONG = "x" * 33
WRONG: list[tuple[str, dict[str, object]]] = [
    ("kind", {"kind": 0}), ("kind", {"kind": 10}), ("symbol", {"symbol": ""}), ("symbol", {"symbol": LONG}),
    ("symbol", {"symbol": "EUR USD"}), ("symbol", {"symbol": "EÜRUSD"}), ("position_id", {"position_id": 0}),
    ("position_id", {"position_id": 2**63}), ("side", {"side": 0}), ("side", {"side": 3}),
    ("volume_lots_e8", {"volume_lots_e8": 0}), ("volume_lots_e8", {"volume_lots_e8": -1}),
    ("price_e8", {"price_e8": 0}), ("stop_loss_e8", {"stop_loss_e8": -1}),
    ("take_profit_e8", {"take_profit_e8": -1}), ("occurred_at_us", {"occurred_at_us": 0}),
    ("occurred_at_us", {"occurred_at_us": 2**60}), ("expires_at_us", {"expires_at_us": -1}),
    ("order_type", {"order_type": 4}), ("comment", {"comment": "é" * 33}), ("comment", {"comment": "a\nb"}),
    ("magic", {"magic": 2**63}),
    ("opposite_position_id", {"kind": pb.SIGNAL_KIND_CLOSE_BY}),
    ("opposite_position_id", {"kind": pb.SIGNAL_KIND_CLOSE_BY, "opposite_position_id": 7}),
    ("volume_lots_e8", {"kind": pb.SIGNAL_KIND_PARTIAL_CLOSE, "volume_lots_e8": 0}),
    ("order_id", {"kind": pb.SIGNAL_KIND_PENDING_CANCEL}),
    ("order_type", {"kind": pb.SIGNAL_KIND_PENDING_PLACE, "order_id": 3}),
    ("stop_limit_price_e8", {"kind": pb.SIGNAL_KIND_PENDING_PLACE, "order_id": 3, "order_type": 3}),
    ("price_e8", {"kind": pb.SIGNAL_KIND_PENDING_MODIFY, "order_id": 3, "price_e8": 0}),
    ("order_id", {"kind": pb.SIGNAL_KIND_PENDING_FILL}),
]  # fmt: skip


def one_signal(**fields: object) -> pb.Signal:
    values: dict[str, object] = {"kind": pb.SIGNAL_KIND_OPEN, "position_id": 7, **fields}
    return signal(values.pop("kind"), values.pop("position_id"), **values)


class TestChecks:
    @pytest.mark.parametrize(("field", "fields"), WRONG)
    def test_the_wrong_field_is_named_and_the_front_door_refuses_it_too(
        self, field: str, fields: dict[str, object]
    ) -> None:
        wrong = one_signal(**fields)
        with pytest.raises(SignalInvalidError) as caught:
            signals.check(wrong)
        assert caught.value.field == field
        assert problem_of(wrong) is not None

    @pytest.mark.parametrize("kind", range(1, 10))
    def test_every_kind_can_be_right_for_both(self, kind: int) -> None:
        right = one_signal(kind=kind, order_id=3, order_type=1, opposite_position_id=8, comment="é" * 32)
        signals.check(right)
        assert problem_of(right) is None


class TestClock:
    def test_the_shortest_round_trip_counts(self) -> None:
        clock = ServerClock(0, 1_000)
        assert clock.at(5) == 1_005
        clock.observe(2_000, 0, 100)
        assert clock.at(100) == 2_050
        clock.observe(9_000, 200, 500)
        assert clock.at(100) == 2_050
        clock.observe(3_000, 600, 620)
        assert clock.at(620) == 3_010

    def test_an_old_estimate_gives_way_to_a_worse_one(self) -> None:
        clock = ServerClock(0, 0)
        clock.observe(1_000, 0, 10)
        later = ESTIMATE_AGE_US_MAX + 100
        clock.observe(later + 500_000, later, later + 1_000)
        assert clock.at(later + 1_000) == later + 500_500

    def test_of_unasked_times_the_fastest_counts(self) -> None:
        clock = ServerClock(0, 0)
        clock.observe_one_way(1_000, 100)
        clock.observe_one_way(1_050, 200)
        assert clock.at(200) == 1_100
        clock.observe_one_way(1_300, 300)
        assert clock.at(300) == 1_300


class TestWaits:
    def test_the_range_doubles_up_to_the_cap_and_starts_over(self) -> None:
        backoff = Backoff(1, 5, lambda low, high: high)
        assert [backoff.next_delay() for _ in range(5)] == [1, 2, 4, 5, 5]
        backoff.reset()
        assert backoff.next_delay() == 1

    def test_the_jitter_is_full(self) -> None:
        assert Backoff(1, 5, lambda low, high: low).next_delay() == 0

    @pytest.mark.parametrize(("initial", "cap"), [(0, 1), (2, 1)])
    def test_bad_ranges_are_refused(self, initial: float, cap: float) -> None:
        with pytest.raises(SettingsError):
            Backoff(initial, cap)


def master_settings(**fields: object) -> MasterSettings:
    values: dict[str, object] = {
        "addresses": ["a:1"], "master_id": 1, "key_id": "k", "secret": b"s", "license_token": "t",
        "outbox_folder": Path("x"), **fields,
    }  # fmt: skip
    return MasterSettings(**values)


class TestPacing:
    @pytest.fixture
    def pacing(self) -> Pacing:
        settings = master_settings(reconnect_seconds_min=1, reconnect_seconds_max=4, fenced_max=3)
        return Pacing(settings, lambda low, high: high)

    def test_failures_wait_longer_and_longer_until_there_is_progress(self, pacing: Pacing) -> None:
        end = End(Outlook.RETRY, "")
        assert [pacing.delay(end, False, 0) for _ in range(4)] == [1, 2, 4, 4]
        assert pacing.delay(end, True, 0) == 1
        pacing.delay(end, False, 0)
        assert pacing.delay(end, False, 10) == 1

    def test_the_server_may_ask_for_longer(self, pacing: Pacing) -> None:
        assert pacing.delay(End(Outlook.RETRY, "", wait_ms=9_000), False, 0) == 9

    @pytest.mark.parametrize("outlook", [Outlook.AGAIN, Outlook.RETRY])
    def test_no_server_can_send_a_master_away_for_weeks(self, pacing: Pacing, outlook: Outlook) -> None:
        assert pacing.delay(End(outlook, "", wait_ms=0xFFFFFFFF), False, 0) == 60

    def test_a_drain_is_followed_to_the_letter(self, pacing: Pacing) -> None:
        assert pacing.delay(End(Outlook.AGAIN, "", wait_ms=30), False, 0) == 0.03

    def test_again_without_a_time_does_not_spin(self, pacing: Pacing) -> None:
        assert [pacing.delay(End(Outlook.AGAIN, ""), False, 0) for _ in range(3)] == [1, 2, 4]

    def test_refusals_wait_up_to_their_own_cap(self, pacing: Pacing) -> None:
        end = End(Outlook.REFUSED, "")
        assert [pacing.delay(end, False, 0) for _ in range(8)][-1] == 60

    def test_what_is_fatal_is_given_up(self, pacing: Pacing) -> None:
        assert pacing.delay(End(Outlook.FATAL, ""), True, 99) is None

    def test_being_fenced_again_and_again_is_given_up_unless_there_was_peace(self, pacing: Pacing) -> None:
        end = End(Outlook.FENCED, "")
        assert pacing.delay(end, True, 0) is not None
        assert pacing.delay(end, True, 0) is not None
        assert pacing.delay(end, True, 60) is not None
        assert pacing.delay(end, True, 0) is not None
        assert pacing.delay(end, True, 0) is None


class TestSettings:
    @pytest.mark.parametrize(
        ("address", "parsed"),
        [("host:9", ("host", 9)), ("[::1]:65535", ("::1", 65_535)), ("1.2.3.4:1", ("1.2.3.4", 1))],
    )  # fmt: skip
    def test_addresses(self, address: str, parsed: tuple[str, int]) -> None:
        assert parse_address(address) == parsed

    @pytest.mark.parametrize(
        "address", ["", "host", ":9", "host:", "host:x", "host:0", "host:65536", "::1:9", "h:²"]
    )
    def test_bad_addresses(self, address: str) -> None:
        with pytest.raises(SettingsError):
            parse_address(address)

    @pytest.mark.parametrize(
        "fields",
        [
            {"addresses": []}, {"addresses": ["nonsense"]}, {"master_id": 0}, {"key_id": ""}, {"secret": b""},
            {"license_token": ""}, {"client": "x" * 65}, {"plaintext": True, "ca_file": Path("x")},
            {"reconnect_seconds_min": 0}, {"reconnect_seconds_max": 99},
        ],
    )  # fmt: skip
    def test_bad_master_settings(self, fields: dict[str, object]) -> None:
        with pytest.raises(SettingsError):
            master_settings(**fields)

    @pytest.mark.parametrize(
        "fields",
        [
            {"addresses": []}, {"risk_addresses": ["x"]}, {"license_token": ""}, {"masters": {0: None}},
            {"masters": dict.fromkeys(range(1, 102))}, {"client": "x" * 65},
            {"plaintext": True, "ca_file": Path("x")}, {"reconnect_seconds_min": 0}, {"outcomes_max": 0},
        ],
    )  # fmt: skip
    def test_bad_subscriber_settings(self, fields: dict[str, object]) -> None:
        values: dict[str, object] = {"addresses": ["a:1"], "license_token": "t", **fields}
        with pytest.raises(SettingsError):
            SubscriberSettings(**values)

    def test_secrets_are_not_shown(self) -> None:
        shown = repr(master_settings(secret=b"hidden-key", license_token="hidden-token"))
        assert "hidden" not in shown
        assert "hidden" not in repr(SubscriberSettings(addresses=["a:1"], license_token="hidden"))

    def test_tls_is_the_default_and_a_missing_ca_is_told(self) -> None:
        context = master_settings().tls()
        assert context is not None
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert master_settings(plaintext=True).tls() is None
        with pytest.raises(SettingsError, match="cannot be read"):
            master_settings(ca_file=Path("/nowhere")).tls()


class TestStreamEnds:
    def status(self, *details: fanout_service_pb2.PositionUnavailable) -> bytes:
        status = status_pb2.Status(code=11, message="gone")
        for detail in details:
            status.details.add().Pack(detail)
        return status.SerializeToString()

    def test_what_is_there_instead_is_read_from_the_details(self) -> None:
        whole = fanout_service_pb2.PositionUnavailable(
            master_id=1,
            oldest=Position(1, 5).to_pb(),
            head=Position(2, 9).to_pb(),
            snapshot=Position(2, 8).to_pb(),
        )
        bare = fanout_service_pb2.PositionUnavailable(master_id=2, oldest=Position(1, 1).to_pb())
        read = positions_unavailable(self.status(whole, bare))
        assert read.masters == {
            1: Offer(Position(1, 5), Position(2, 9), Position(2, 8)),
            2: Offer(Position(1, 1), Position(0, 0), None),
        }

    @pytest.mark.parametrize(
        "data", [b"", b"\xff\xff\xff", b"\x1a\x7f", b"\x0d\x01\x02\x03\x04", b"\x1a\x02\x12\x05"]
    )
    def test_what_is_no_status_gives_nothing(self, data: bytes) -> None:
        assert positions_unavailable(data).masters == {}

    @pytest.mark.parametrize(
        ("code", "outlook"),
        [
            ("UNAVAILABLE", StreamOutlook.RETRY), ("RESOURCE_EXHAUSTED", StreamOutlook.RETRY),
            ("INTERNAL", StreamOutlook.RETRY), ("OK", StreamOutlook.RETRY),
            ("OUT_OF_RANGE", StreamOutlook.AGAIN), ("UNAUTHENTICATED", StreamOutlook.TOKEN),
            ("PERMISSION_DENIED", StreamOutlook.REFUSED), ("INVALID_ARGUMENT", StreamOutlook.REFUSED),
        ],
    )  # fmt: skip
    def test_each_code_has_its_outlook(self, code: str, outlook: StreamOutlook) -> None:
        end = stream_end(code, "why", None)
        assert (end.outlook, end.code, end.reason) == (outlook, code, "why")
        assert (end.unavailable is not None) == (code == "OUT_OF_RANGE")


class TestOutcomes:
    def add(
        self, outcomes: Outcomes, number: int, action: Action = Action.COPY, reason: Reason = Reason.NONE
    ) -> None:
        opening = sequenced(signal(pb.SIGNAL_KIND_OPEN, number), number)
        outcomes.add_decision(opening, Decision(action, reason, price_e8=5), 11, 22)

    def test_an_execution_and_a_refusal(self) -> None:
        outcomes = Outcomes(10, Report.DECISIONS)
        self.add(outcomes, 1)
        self.add(outcomes, 2, Action.SKIP, Reason.SPREAD)
        self.add(outcomes, 3, Action.SKIP, Reason.SYMBOL_FILTER)
        request = outcomes.next_request()
        assert request is not None
        done, refused, filtered = request.outcomes
        assert (done.event_id, done.kind, done.price_e8) == ("1-1-1", risk_pb.OUTCOME_KIND_EXECUTED, 5)
        assert (done.latency_us, done.occurred_at_us, done.position.sequence) == (11, 22, 1)
        assert refused.kind == risk_pb.OUTCOME_KIND_PROTECTED
        assert refused.reason == risk_pb.PROTECTION_REASON_SPREAD
        assert filtered.reason == risk_pb.PROTECTION_REASON_FILTER

    @pytest.mark.parametrize("reason", [Reason.TIME_FILTER, Reason.DEGRADED, Reason.SYMBOL_FILTER])
    def test_an_enlargement_that_a_filter_refused_is_no_execution(self, reason: Reason) -> None:
        """Though its stops were followed."""
        outcomes = Outcomes(10, Report.DECISIONS)
        self.add(outcomes, 1, Action.RESIZE, reason)
        self.add(outcomes, 2, Action.RESIZE, Reason.VOLUME_MAX)
        request = outcomes.next_request()
        assert request is not None
        refused, done = request.outcomes
        assert (refused.kind, refused.reason) == (
            risk_pb.OUTCOME_KIND_PROTECTED,
            risk_pb.PROTECTION_REASON_FILTER,
        )
        assert done.kind == risk_pb.OUTCOME_KIND_EXECUTED

    def test_only_what_opens_risk_is_reported(self) -> None:
        outcomes = Outcomes(10, Report.DECISIONS)
        for kind in range(1, 10):
            outcomes.add_decision(sequenced(signal(kind, 1), kind), Decision(Action.COPY), 0, 0)
        assert len(outcomes) == 3

    @pytest.mark.parametrize(("report", "count"), [(Report.MANUAL, 1), (Report.NONE, 0)])
    def test_who_reports(self, report: Report, count: int) -> None:
        outcomes = Outcomes(10, report)
        self.add(outcomes, 1)
        self.add(outcomes, 2, Action.SKIP, Reason.SPREAD)
        assert len(outcomes) == count

    def test_the_same_are_sent_again_until_they_are_taken(self) -> None:
        outcomes = Outcomes(5_000, Report.DECISIONS)
        for number in range(1, 1_501):
            self.add(outcomes, number)
        first = outcomes.next_request()
        self.add(outcomes, 1_501)
        assert outcomes.next_request() == first
        outcomes.sent()
        second = outcomes.next_request()
        assert second is not None
        assert [len(second.outcomes), second.outcomes[0].event_id] == [501, "1-1-1001"]
        outcomes.sent()
        assert outcomes.next_request() is None

    def test_what_does_not_fit_pushes_out_the_oldest_and_is_counted(self) -> None:
        outcomes = Outcomes(3, Report.DECISIONS)
        for number in range(1, 4):
            self.add(outcomes, number)
        outcomes.next_request()
        self.add(outcomes, 4)
        assert outcomes.dropped == 1
        outcomes.sent()
        left = outcomes.next_request()
        assert left is not None
        assert [one.event_id for one in left.outcomes] == ["1-1-4"]


def test_an_applications_fault_is_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    import logging

    def broken(_event: str) -> None:
        raise ZeroDivisionError

    teller = Teller(broken, logging.getLogger("ecp_client"))
    teller.tell("something")
    assert teller.errors == 1
    assert "on_event failed for 'something'" in caplog.text
    Teller[str](None, logging.getLogger("ecp_client")).tell("nobody listens")


def test_every_error_is_of_the_family() -> None:
    from ecp_client import errors

    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert all(issubclass(one, ClientError) for one in classes)
